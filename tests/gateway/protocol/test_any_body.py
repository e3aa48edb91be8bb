"""Whatever a body says, it is parsed or refused with a 400 that can be written out; nothing else ever
comes out.
"""

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.error_form import error_body, error_headers
from gateway.errors import GatewayError
from gateway.protocol import (
    chat,
    check_against_model,
    completions,
    embeddings,
    messages,
    parse_request,
    responses,
    tokenize,
)
from gateway.protocol.refused import REFUSED
from gateway.request import Dialect, Route
from gateway.routes import ROUTES
from tests.examples import examples
from tests.gateway.protocol.bodies import SMALLEST
from tests.gateway.protocol.model_limits import ModelLimits
from tests.gateway.upstream.asked import body_for

NAMES = sorted(
    {
        *chat.FIELDS,
        *completions.FIELDS,
        *embeddings.FIELDS,
        *messages.FIELDS,
        *responses.FIELDS,
        *tokenize.FIELDS,
        *REFUSED,
        "no_such_name",
    }
)
WORDS = st.sampled_from(
    ["type", "role", "content", "text", "user", "assistant", "tool", "function", "name", "json_schema",
    "schema", "$ref", "#", "properties", "pattern",
     "image_url", "url", "input_text", "message", "function_call", "arguments", "tool_result", "tool_use",
     "source", "base64", "regex", "json", "(a", ""]
)  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=12,
)
LIMITS = ModelLimits(2048, 1000, frozenset({"a"}), frozenset(route.value for route in Route))


def refused(route: Route, raw: bytes) -> GatewayError | None:
    """Why, or None for a body that went all the way to an engine's."""
    try:
        parsed = parse_request(ROUTES[route], raw)
        check_against_model(parsed, LIMITS)
    except GatewayError as error:
        return error
    assert 0 <= parsed.samples <= 2048
    assert parsed.input_tokens_estimate >= 0
    body_for(parsed, default_max_tokens=5)
    return None


@settings(max_examples=examples(250), deadline=None)
@given(st.sampled_from(list(Route)), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
def test_fault_16_any_body_is_parsed_or_refused_with_a_400(route: Route, changes: dict[str, Any]) -> None:
    error = refused(route, orjson.dumps({**SMALLEST[route], **changes}))
    if error is not None:
        assert error.status == 400
        assert error.message.isprintable()
        for dialect in Dialect:
            orjson.loads(error_body(error, dialect, "req_1"))
        error_headers(error)


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
def test_any_bytes_are_refused(raw: bytes) -> None:
    error = refused(Route.CHAT, raw)
    assert error is not None
    assert error.status == 400
