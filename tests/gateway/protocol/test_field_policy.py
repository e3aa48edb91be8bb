"""Taken, dropped or refused: what becomes of each field, and that what is dropped changes nothing but what
the caller is told.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from billing.wire.engine_kinds import OPENAI, VLLM
from gateway.protocol import check_against_model, parse_request
from gateway.protocol.ignored import NAME_CHARS_MAX, NAMES_MAX, header_value, kept_names, metric_name
from gateway.protocol.tools import TOOLS_BYTES_MAX, TOOLS_MAX
from gateway.request import ParsedRequest, Route
from gateway.routes import ROUTES
from tests.examples import examples
from tests.gateway.protocol.bodies import SMALLEST, parse, refusal
from tests.gateway.protocol.model_limits import ModelLimits
from tests.gateway.upstream.asked import INSTANCE, call_for

HELLO = {"role": "user", "content": "hi"}
OBJECT = {"type": "object", "properties": {"s": {"type": "string"}}}
OFFERED = frozenset(route.value for route in Route)
# A body of each route with every kind of object in it that a table describes.
FULL: dict[Route, dict[str, Any]] = {
    Route.CHAT: {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url",
            "image_url": {"url": "data:image/png;base64,AAAA"}}]},
            {"role": "assistant", "content": "x", "tool_calls": [{"id": "1", "type": "function",
            "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "x"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": OBJECT}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": OBJECT}},
    },
    Route.COMPLETIONS: {"model": "m", "prompt": "x", "structured_outputs": {"regex": "a"}},
    Route.RESPONSES: {
        "model": "m",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "x"}, {"type": "input_image",
            "image_url": "data:image/png;base64,AAAA"}]},
            {"type": "reasoning", "id": "1", "summary": [{"type": "summary_text", "text": "x"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x",
            "annotations": []}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "x"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": OBJECT}],
        "tool_choice": {"type": "function", "name": "f"},
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "x", "schema": OBJECT}},
    },
    Route.MESSAGES: {
        "model": "m",
        "max_tokens": 5000,
        "system": [{"type": "text", "text": "x"}],
        "messages": [
            {"role": "user", "content": [{"type": "image", "source": {"type": "base64",
            "media_type": "image/png", "data": "AAAA"}}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, {"type": "tool_use",
            "id": "1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1",
            "content": [{"type": "text", "text": "x"}]}]},
            {"role": "user", "content": [{"type": "document", "source": {"type": "text",
            "media_type": "text/plain", "data": "x"}}]},
        ],
        "tools": [{"name": "f", "input_schema": OBJECT}],
        "tool_choice": {"type": "tool", "name": "f"},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "output_config": {"effort": "low"},
    },
    Route.EMBEDDINGS: {"model": "m", "input": "x"},
    Route.RERANK: {"model": "m", "query": "x", "documents": ["y"], "top_n": 1, "max_tokens_per_doc": 5},
    Route.SCORE: {"model": "m", "text_1": "x", "text_2": ["y"], "max_tokens_per_query": 5},
    Route.TOKENIZE: {"model": "m", "messages": [HELLO], "tools": [{"type": "function",
    "function": {"name": "f", "parameters": OBJECT}}]},
}  # fmt: skip
FULL[Route.INPUT_TOKENS] = FULL[Route.RESPONSES]
FULL[Route.COUNT_TOKENS] = {
    name: value for name, value in FULL[Route.MESSAGES].items() if name != "max_tokens"
}
# What is in them is the caller's own.
FREE = frozenset({"parameters", "input_schema", "schema", "metadata"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def to_engine(route: Route, body: dict[str, Any]) -> tuple[bytes, ParsedRequest]:
    """What an engine is sent for this body."""
    parsed = parse_request(ROUTES[route], json.dumps(body).encode())
    parsed = check_against_model(parsed, ModelLimits(8192, None, frozenset({"enable_thinking"}), OFFERED))
    return call_for(parsed).body, parsed


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all objects in a body, but for what is free; the input of a tool is."""
    if isinstance(value, dict):
        yield path
        for name, member in value.items():
            if name not in FREE and not (name == "input" and value.get("type") == "tool_use"):
                yield from objects(member, (*path, name))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from objects(member, (*path, index))


PLACES = [(route, path) for route in Route for path in objects(FULL[route])]


@settings(max_examples=examples(400), deadline=None)
@given(st.sampled_from(PLACES), st.text(max_size=80), VALUES, st.integers(0, 5))
def test_an_unknown_field_anywhere_changes_nothing_but_what_the_caller_is_told(
    place: tuple[Route, tuple[Any, ...]], name: str, value: Any, position: int
) -> None:
    route, path = place
    assume(name.encode("utf-8", "ignore").decode() == name)
    body = copy.deepcopy(FULL[route])
    node: Any = body
    for step in path:
        node = node[step]
    members = list(node.items())
    members.insert(position, (f"unknown_{name}", value))
    node.clear()
    node.update(members)
    sent, parsed = to_engine(route, body)
    assert sent == to_engine(route, FULL[route])[0]
    assert len(parsed.ignored) == (value is not None)
    header = header_value(parsed.ignored)
    assert header.isascii()
    assert header.decode().isprintable()
    assert len(header) <= NAME_CHARS_MAX
    assert [metric_name(place) for place in parsed.ignored] == ["other"] * len(parsed.ignored)


@pytest.mark.parametrize("route", Route)
def test_no_full_body_has_anything_that_is_ignored(route: Route) -> None:
    assert to_engine(route, FULL[route])[1].ignored == ()


def test_the_record_is_bounded_and_names_each_kind_once() -> None:
    many = parse(Route.CHAT, **{f"unknown_{i}": 1 for i in range(NAMES_MAX + 5)})
    assert len(many.ignored) == NAMES_MAX + 1
    assert many.ignored[-1] == "+5"
    said = {"role": "assistant", "content": "x", "provider_specific_fields": {"secret": "prompt"}}
    parsed = parse(Route.CHAT, messages=[HELLO, said, HELLO, said])
    assert parsed.ignored == ("messages[1].provider_specific_fields",)
    assert metric_name(parsed.ignored[0]) == "provider_specific_fields"
    odd = parse(Route.CHAT, **{"a\r\nset-cookie: b=1": 1, "é" * 100: 2})
    assert header_value(odd.ignored) == b"a__set-cookie__b_1, " + b"_" * 64


CHAT_TOOL = {"type": "function", "function": {"name": "f", "parameters": OBJECT}}
ANTHROPIC_TOOL = {"name": "f", "input_schema": OBJECT}
RESPONSES_TOOL = {"type": "function", "name": "f", "parameters": OBJECT}


@pytest.mark.parametrize(
    ("route", "changes", "ignored"),
    [
        (Route.CHAT, {"store": True, "verbosity": "low", "prediction": {"type": "content", "content": "x"}},
        "store verbosity prediction"),
        (Route.RESPONSES, {"store": True, "truncation": "auto", "text": {"verbosity": "low"}},
        "store truncation text.verbosity"),
        (Route.RESPONSES, {"client_metadata": {"installation": "x"}}, "client_metadata"),
        (Route.RESPONSES, {"include": ["web_search_call.results", "reasoning.encrypted_content"]},
        "include[0]"),
        (Route.RESPONSES, {"tools": [{"type": "web_search"}, RESPONSES_TOOL, {"type": "namespace",
        "tools": []}]}, "tools[0]"),
        (Route.RESPONSES, {"tools": [{"type": "custom", "name": "p"}, RESPONSES_TOOL],
        "tool_choice": "required"}, "tools[0]"),
        (Route.CHAT, {"tools": [CHAT_TOOL, {"type": "custom", "custom": {"name": "p"}}]}, "tools[1]"),
        (Route.MESSAGES, {"tools": [ANTHROPIC_TOOL, {"type": "web_search_20250305", "name": "web_search"}]},
        "tools[1]"),
        (Route.MESSAGES, {"tools": [{"type": "bash_20250124", "name": "bash"}],
        "tool_choice": {"type": "auto"}}, "tools[0]"),
        (Route.MESSAGES, {"tools": [ANTHROPIC_TOOL | {"input_examples": [{}], "defer_loading": True}]},
        "tools[0].input_examples tools[0].defer_loading"),
        (Route.MESSAGES, {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        "context_management"),
        (Route.MESSAGES, {"thinking": {"type": "between_tools"}, "speed": "fast"}, "thinking speed"),
        (Route.MESSAGES, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x",
        "id": "1"}]}]}, "messages[0].content[0].id"),
        (Route.MESSAGES, {"user": "u", "seed": 1, "stream_options": {"include_usage": True}},
        "user seed stream_options"),
    ],
)  # fmt: skip
def test_hints_and_what_cannot_run_here_are_dropped_and_named(
    route: Route, changes: dict[str, Any], ignored: str
) -> None:
    assert parse(route, **changes).ignored == tuple(ignored.split())


@pytest.mark.parametrize(
    ("route", "changes"),
    [
        (Route.CHAT, {"tools": []}), (Route.CHAT, {"tools": [], "tool_choice": "auto"}), (Route.CHAT,
        {"tool_choice": "none"}),
        (Route.RESPONSES, {"tools": [], "tool_choice": "none"}), (Route.MESSAGES, {"tools": [],
        "tool_choice": {"type": "auto"}}),
        (Route.MESSAGES, {"tool_choice": {"type": "none"}}), (Route.MESSAGES,
        {"cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "global"}}),
        (Route.MESSAGES, {"messages": [{"role": "user", "content": "hi", "x": None}]}),
        (Route.CHAT, {"store": False, "modalities": ["text"], "verbosity": "medium"}),
        (Route.CHAT, {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k",
        "prompt_cache_retention": "24h", "function_call": "none"}),
        (Route.CHAT, {"messages": [HELLO | {"function_call": None, "audio": None}]}), (Route.RESPONSES,
        {"truncation": "disabled", "background": False}),
        (Route.COMPLETIONS, {"best_of": 1}),
    ],
)  # fmt: skip
def test_what_asks_for_nothing_is_dropped_without_a_word(route: Route, changes: dict[str, Any]) -> None:
    sent, parsed = to_engine(route, SMALLEST[route] | changes)
    assert sent == to_engine(route, SMALLEST[route])[0]
    assert parsed.ignored == ()


@pytest.mark.parametrize(
    ("route", "changes", "param"),
    [
        (Route.RESPONSES, {"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        (Route.RESPONSES, {"tools": [{"type": "web_search"}, RESPONSES_TOOL],
        "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        (Route.CHAT, {"tools": [{"type": "custom", "custom": {"name": "p"}}],
        "tool_choice": {"type": "custom", "custom": {"name": "p"}}}, "tool_choice"),
        (Route.MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "tool_choice": {"type": "any"}}, "tool_choice"),
        (
            Route.MESSAGES,
            {"tools": [ANTHROPIC_TOOL, {"type": "bash_20250124", "name": "bash"}],
            "tool_choice": {"type": "tool", "name": "bash"}},
            "tool_choice.name",
        ),
    ],
)  # fmt: skip
def test_a_tool_that_cannot_run_here_is_not_dropped_where_it_is_forced(
    route: Route, changes: dict[str, Any], param: str
) -> None:
    assert refusal(route, **changes).param == param


BEYOND_A_GRAMMAR = {
    "long": {"type": "object", "properties": {"s": {"type": "string", "maxLength": 524_288}}},
    "look-around": {"type": "object", "properties": {"s": {"type": "string",
    "pattern": "^(?!-)[a-z-]+(?<!-)$"}}},
    "inline flags": {"type": "object", "properties": {"s": {"type": "string", "pattern": "(?i)abc"}}},
    "recursive": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}},
    "$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}}}},
}  # fmt: skip


@pytest.mark.parametrize("schema", BEYOND_A_GRAMMAR.values(), ids=BEYOND_A_GRAMMAR)
def test_a_schema_is_held_to_a_grammars_bounds_only_where_one_is_built(schema: dict[str, Any]) -> None:
    chat = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    responses = [{"type": "function", "name": "f", "parameters": schema}]
    anthropic = [{"name": "f", "input_schema": schema}]
    for choice in (None, "auto", "none"):
        parse(Route.CHAT, tools=chat, tool_choice=choice)
        parse(Route.RESPONSES, tools=responses, tool_choice=choice)
    for kind in ("auto", "none"):
        parse(Route.MESSAGES, tools=anthropic, tool_choice={"type": kind})
    for forced in (
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"parallel_tool_calls": False},
    ):
        assert "without that" in refusal(Route.CHAT, tools=chat, **forced).message
    refusal(Route.CHAT, tools=[{"type": "function", "function": chat[0]["function"] | {"strict": True}}])
    for forced in (
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "name": "f"}},
        {"parallel_tool_calls": False},
    ):
        refusal(Route.RESPONSES, tools=responses, **forced)
    for choice in (
        {"type": "any"},
        {"type": "tool", "name": "f"},
        {"type": "auto", "disable_parallel_tool_use": True},
    ):
        refusal(Route.MESSAGES, tools=anthropic, tool_choice=choice)
    refusal(Route.MESSAGES, tools=[anthropic[0] | {"strict": True}])
    refusal(Route.MESSAGES, output_config={"format": {"type": "json_schema", "schema": schema}})
    # Only the schema of the strict tool becomes a grammar.
    parse(Route.MESSAGES, tools=[*anthropic, {"name": "g", "input_schema": OBJECT, "strict": True}])


def test_tools_are_many_and_bounded() -> None:
    tools = [ANTHROPIC_TOOL | {"name": f"server__tool_{i}"} for i in range(TOOLS_MAX)]
    parse(Route.MESSAGES, tools=tools)
    assert refusal(Route.MESSAGES, tools=[*tools, ANTHROPIC_TOOL]).param == "tools"
    large = [
        ANTHROPIC_TOOL | {"name": f"f{i}", "input_schema": {"type": "object", "description": "x" * 32_000}}
        for i in range(32)
    ]
    parse(Route.MESSAGES, tools=large)
    assert len(json.dumps(large)) < TOOLS_BYTES_MAX < len(json.dumps(large * 2))
    assert refusal(Route.MESSAGES, tools=large * 2).param == "tools"


def test_text_in_blocks_that_engines_do_not_know_goes_into_the_prompt() -> None:
    document = {
        "type": "document",
        "title": "T",
        "source": {"type": "text", "media_type": "text/plain", "data": "body"},
    }
    parts = {
        "type": "document",
        "source": {
            "type": "content",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
    }
    found = {
        "type": "search_result",
        "title": "T",
        "source": "http://x",
        "content": [{"type": "text", "text": "a"}],
        "citations": {"enabled": False},
    }
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "tool_reference",
    "tool_name": "f"}, document]}  # fmt: skip
    parsed = parse(Route.MESSAGES, messages=[{"role": "user", "content": [result, document, parts, found]}])
    blocks = parsed.body["messages"][0]["content"]
    assert [block["text"] for block in blocks[1:]] == ["T\nbody", "a\nb", "T\nhttp://x\na"]
    assert [block["text"] for block in blocks[0]["content"]] == ["f", "T\nbody"]
    assert {block["type"] for block in blocks[1:]} == {"text"}
    assert parsed.ignored == ()


@pytest.mark.parametrize(
    "source",
    [
        {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}, {"type": "url",
        "url": "http://x/a.pdf"}, {"type": "file", "file_id": "f"},
        {"type": "content", "content": [{"type": "image", "source": {"type": "base64",
        "media_type": "image/png", "data": "AAAA"}}]}, {},
    ],
)  # fmt: skip
def test_other_documents_are_refused_by_name(source: dict[str, Any]) -> None:
    error = refusal(
        Route.MESSAGES, messages=[{"role": "user", "content": [{"type": "document", "source": source}]}]
    )
    assert (error.param or "").startswith("messages[0].content[0].source")


def test_citations_would_be_missed() -> None:
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"},
    "citations": {"enabled": True}}  # fmt: skip
    error = refusal(Route.MESSAGES, messages=[{"role": "user", "content": [document]}])
    assert error.param == "messages[0].content[0].citations"


def test_a_thread_is_declined_as_the_sdks_tool_runners_expect() -> None:
    assert refusal(Route.MESSAGES, thread={"type": "create"}).code == "thread_unsupported_request"


@pytest.mark.parametrize("route", [Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES])
def test_top_p_of_zero_leaves_the_likeliest_token(route: Route) -> None:
    parsed = parse(route, top_p=0)
    assert 0 < parsed.body["top_p"] < 1e-5
    assert parsed.ignored == ()


def test_a_budget_of_thought_is_dropped_where_the_model_does_not_think() -> None:
    plain = ModelLimits(8192, None, frozenset(), OFFERED)
    thinking = {"type": "enabled", "budget_tokens": 1024}
    parsed = check_against_model(parse(Route.MESSAGES, max_tokens=2000, thinking=thinking), plain)
    assert (parsed.ignored, "thinking" in parsed.body) == (("thinking",), False)
    parsed = check_against_model(parse(Route.CHAT, thinking_token_budget=5), plain)
    assert (parsed.ignored, "thinking_token_budget" in parsed.body) == (("thinking_token_budget",), False)
    for kept in ({"type": "disabled"}, {"type": "adaptive"}):
        assert check_against_model(parse(Route.MESSAGES, thinking=kept), plain).body["thinking"] == kept
    thinks = ModelLimits(8192, None, frozenset({"enable_thinking"}), OFFERED)
    assert check_against_model(parse(Route.MESSAGES, max_tokens=2000, thinking=thinking), thinks).body[
        "thinking"
    ]


def test_a_budget_of_thought_is_kept_where_only_providers_serve_the_model() -> None:
    """An engine beside them would refuse it."""
    model = ModelLimits(8192, None, frozenset(), OFFERED)
    thinking = {"type": "enabled", "budget_tokens": 1024}
    engine, provider = (replace(INSTANCE, engine=kind) for kind in (VLLM, OPENAI))
    for serving, kept in (([provider], True), ([provider, engine], False), ([engine], False), ([], False)):
        parsed = parse(Route.MESSAGES, max_tokens=2000, thinking=thinking)
        assert ("thinking" in check_against_model(parsed, model, serving).body) is kept


def test_what_comes_back_of_an_answer_of_responses_is_taken() -> None:
    cited = {
        "type": "output_text",
        "text": "x",
        "annotations": [{"type": "url_citation", "url": "http://x"}],
        "logprobs": [{"token": "x"}],
    }
    parsed = parse(Route.RESPONSES, input=[{"type": "message", "role": "assistant", "id": "m",
    "status": "completed", "content": [cited]}])  # fmt: skip
    assert parsed.ignored == ()
    assert parsed.body["input"][0]["content"][0] == {"type": "output_text", "text": "x", "annotations": []}


def test_the_counting_routes_take_what_the_answering_routes_take() -> None:
    assert to_engine(Route.COUNT_TOKENS, FULL[Route.MESSAGES])[1].ignored == ()
    body, parsed = to_engine(
        Route.INPUT_TOKENS, SMALLEST[Route.RESPONSES] | {"stream": True, "max_output_tokens": 5}
    )
    assert (json.loads(body), parsed.stream) == (
        {"model": "engine-m", "input": "hi", "mm_payload": "none"},
        False,
    )


@pytest.mark.parametrize(
    ("places", "kept"),
    [
        (("user", "tools[2]", "messages[1].annotations"), ("user", "tools[2]", "messages[1].annotations")),
        (("my-secret", "messages[0].my-secret", "my-secret.user"), ("other",)),
        (("user.my-secret", "tools[0].function.seed", "+3"), ("other", "tools[0].function.seed", "+3")),
        (("+my-secret", ""), ("other",)),
    ],
)
def test_of_ignored_names_only_known_ones_are_kept(places: tuple[str, ...], kept: tuple[str, ...]) -> None:
    assert kept_names(places) == kept
