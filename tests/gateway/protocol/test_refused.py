"""What no route takes, by name, and each dialect's words on the other's routes."""

from typing import Any

import orjson
import pytest

from gateway.error_form import error_body
from gateway.protocol import check_against_model, refused
from gateway.protocol.refused import REFUSED
from gateway.request import Dialect, Route
from gateway.routes import ROUTES
from tests.gateway.protocol.bodies import parse, refusal
from tests.gateway.protocol.model_limits import ModelLimits

OPENAI_ROUTES = (Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.EMBEDDINGS, Route.TOKENIZE)
ANTHROPIC_ROUTES = (Route.MESSAGES, Route.COUNT_TOKENS)

NEVER: dict[str, Any] = {
    "cache_salt": "x",
    "priority": -5,
    "kv_transfer_params": {"do_remote_decode": True},
    "ec_transfer_params": {},
    "chat_template": "{{ 1 }}",
    "prompt_embeds": "AAAA",
    "mm_hashes": ["x"],
    "mm_processor_kwargs": {"a": 1},
    "media_io_kwargs": {},
    "request_id": "req_1",
    "session_id": "s",
    "vllm_xargs": {"a": 1},
    "bad_words": ["x"],
    "use_beam_search": True,
    "prompt_logprobs": 5,
    "logprob_token_ids": [1],
    "truncate_prompt_tokens": 5,
    "stream_interval": 1000,
    "return_token_ids": True,
    "documents": [{}],
    "guided_json": {"type": "object"},
}


@pytest.mark.parametrize("route", Route)
@pytest.mark.parametrize("name", NEVER)
def test_fault_08_what_only_the_gateway_may_say_is_refused_by_name_on_every_route(
    route: Route, name: str
) -> None:
    if name == ROUTES[route].prompt_param:
        return  # documents that are ranked
    error = refusal(route, **{name: NEVER[name]})
    assert (error.code, error.param) == ("unsupported_parameter", name)
    assert name in error.message


@pytest.mark.parametrize("route", [Route.CHAT, Route.RESPONSES, Route.MESSAGES, Route.COUNT_TOKENS])
def test_fault_08_template_variables_need_the_models_consent(route: Route) -> None:
    parsed = parse(route, chat_template_kwargs={"enable_thinking": False})
    routes = frozenset(route.value for route in Route)
    check_against_model(parsed, ModelLimits(2048, None, frozenset({"enable_thinking"}), routes))
    for allowed in (frozenset[str](), frozenset({"other"})):
        with pytest.raises(Exception, match="chat_template_kwargs") as caught:
            check_against_model(parsed, ModelLimits(2048, None, allowed, routes))
        assert getattr(caught.value, "code", None) == "unsupported_parameter"


@pytest.mark.parametrize("route", [Route.COMPLETIONS, Route.EMBEDDINGS])
def test_fault_08_template_variables_are_refused_where_there_is_no_template(route: Route) -> None:
    assert refusal(route, chat_template_kwargs={"a": 1}).param == "chat_template_kwargs"


@pytest.mark.parametrize("value", [{"a": {"b": 1}}, {"a": [1]}, [], "x", {str(i): 1 for i in range(33)}])
def test_template_variables_are_plain_values(value: Any) -> None:
    assert refusal(Route.CHAT, chat_template_kwargs=value).param == "chat_template_kwargs"


@pytest.mark.parametrize("name", ["system", "stop_sequences", "output_config"])
@pytest.mark.parametrize("route", OPENAI_ROUTES)
def test_fault_15_anthropics_words_on_openais_routes_are_named(route: Route, name: str) -> None:
    error = refusal(route, **{name: "x"})
    body = orjson.loads(error_body(error, Dialect.OPENAI, "req_1"))
    assert body == {
        "error": {
            "message": error.message,
            "type": "invalid_request_error",
            "param": name,
            "code": "unsupported_parameter",
        }
    }


@pytest.mark.parametrize(
    "name", ["stop", "n", "logprobs", "response_format", "max_completion_tokens", "logit_bias"]
)
@pytest.mark.parametrize("route", ANTHROPIC_ROUTES)
def test_fault_15_openais_words_on_anthropics_routes_are_named(route: Route, name: str) -> None:
    error = refusal(route, **{name: "x"})
    body = orjson.loads(error_body(error, Dialect.ANTHROPIC, "req_1"))
    assert (body["type"], body["error"]["type"], body["request_id"]) == (
        "error",
        "invalid_request_error",
        "req_1",
    )
    assert f"'{name}'" in body["error"]["message"]


def test_null_is_absent_whatever_its_name() -> None:
    parse(Route.CHAT, cache_salt=None, temperature=None, tools=None, stream_options=None)
    parse(
        Route.RESPONSES,
        previous_response_id=None,
        conversation=None,
        prompt=None,
        background=None,
        store=None,
    )
    assert parse(Route.CHAT, no_such_parameter=None).ignored == ()


@pytest.mark.parametrize("name", NEVER)
def test_what_only_the_gateway_may_say_has_no_harmless_value(name: str) -> None:
    if name in refused.NEVER:
        for value in (False, 0, "", [], {}):
            assert refusal(Route.CHAT, **{name: value}).param == name


def test_what_asks_for_nothing_is_not_missed() -> None:
    parsed = parse(Route.CHAT, functions=[], web_search_options={}, documents=[])
    assert parsed.ignored == ("functions", "web_search_options", "documents")


@pytest.mark.parametrize("route", Route)
@pytest.mark.parametrize("model", [None, "", 5, ["m"], "m" * 257, "a\nb", "a\x00"])
def test_the_model_is_a_printable_name(route: Route, model: Any) -> None:
    assert refusal(route, model=model).param == "model"


def test_every_reason_is_one_line() -> None:
    assert all(reason.isprintable() and reason.endswith(".") for reason in REFUSED.values())
