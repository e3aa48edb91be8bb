"""Every field that the official SDKs can send, from their types, against the policy that docs/fields.md
tells callers.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_tokens_params
from anthropic.types.beta import message_create_params as beta_message_create_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import input_token_count_params, response_create_params

from gateway.errors import InvalidRequest
from gateway.protocol import messages, parse_request, responses
from gateway.protocol.blocks import ASSISTANT_BLOCKS, RESULT_BLOCKS, USER_BLOCKS
from gateway.protocol.refused import MISSED, NEVER
from gateway.request import Route
from gateway.routes import ROUTES
from tests.gateway.protocol.bodies import SMALLEST
from tests.gateway.protocol.sdk_types import members_of, samples

DOCUMENT = Path(__file__).parents[3] / "docs" / "fields.md"
TYPES: dict[Route, tuple[Any, ...]] = {
    Route.CHAT: (chat_create_params.CompletionCreateParamsStreaming,),
    Route.COMPLETIONS: (completion_create_params.CompletionCreateParamsStreaming,),
    Route.RESPONSES: (response_create_params.ResponseCreateParamsStreaming,),
    Route.INPUT_TOKENS: (input_token_count_params.InputTokenCountParams,),
    Route.EMBEDDINGS: (embedding_create_params.EmbeddingCreateParams,),
    Route.MESSAGES: (
        message_create_params.MessageCreateParamsStreaming,
        beta_message_create_params.MessageCreateParamsStreaming,
    ),
    Route.COUNT_TOKENS: (
        message_count_tokens_params.MessageCountTokensParams,
        beta_count_tokens_params.MessageCountTokensParams,
    ),
}
# What of the SDKs' types is refused inside a parameter, by path without indexes: each is a line of
# docs/fields.md.
BLOCK = r"messages\[\]\.content\[\](\.content\[\])?"
REFUSED_INSIDE = re.compile(
    "|".join(
        (
            r"messages\[\]\.(role|audio|function_call|content\[\]|tool_calls\[\]\.type)",
            rf"{BLOCK}\.(type|source|citations)", rf"{BLOCK}\.source\.content\[\]\.type",
            r"input\[\]\.(type|content\[\]|output\[\])", r"thread", r"tool_choice(\.type)?",
        )
    )
)  # fmt: skip
# What is refused because the sample is not a whole request: a member that some other one would need.
INCOMPLETE = {"missing_required_parameter", "invalid_type"}


def kinds() -> list[tuple[Route, str, Any]]:
    """Every parameter of every route, with its type."""
    return [
        (route, name, hint)
        for route, declared in TYPES.items()
        for kind in declared
        for name, (hint, _) in members_of(kind).items()
    ]


@pytest.mark.parametrize(
    ("route", "name", "hint"), kinds(), ids=lambda value: value if type(value) is str else ""
)
def test_every_field_is_taken_or_ignored_or_refused_as_the_document_says(
    route: Route, name: str, hint: Any
) -> None:
    seen, undocumented = 0, []
    without_effect = _words("Without effect")
    if not ROUTES[route].metered:  # whatever only an answer would need
        without_effect |= {*messages.FIELDS, *responses.FIELDS}
    for value in samples(hint, name):
        seen += 1
        body = {**SMALLEST[route], "stream": True, name: value}
        if route is Route.MESSAGES:
            body["max_tokens"] = 4000
        try:
            parsed = parse_request(ROUTES[route], json.dumps(body).encode())
        except InvalidRequest as error:
            if not _is_told(error):
                undocumented.append(f"{value}: {error.message}")
        else:
            told = any(place.partition(".")[0].partition("[")[0] == name for place in parsed.ignored)
            if not (name in parsed.body or told or name in without_effect or value is None):
                undocumented.append(f"{value}: gone without a word")
    assert seen
    assert not undocumented


def _is_told(error: InvalidRequest) -> bool:
    """Whether the document says that this is refused."""
    path = re.sub(r"\[\d+\]", "[]", error.param or "")
    incomplete = error.code in INCOMPLETE or path == "service_tier"
    return incomplete or path in MISSED or REFUSED_INSIDE.fullmatch(path) is not None


def _rows(heading: str) -> dict[str, str]:
    """The table under a heading of the document: first cell to second."""
    text = DOCUMENT.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|$", text, re.MULTILINE))


def _words(heading: str) -> set[str]:
    """The names in the first cells of the table under a heading."""
    text = DOCUMENT.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([a-z_]+)", cell)}


def test_the_document_lists_what_is_refused_and_why() -> None:
    assert _rows("Refused, whatever the value") == NEVER
    assert _rows("Refused where it asks for something") == MISSED


def test_the_document_lists_the_blocks_that_are_read() -> None:
    line = next(
        line for line in DOCUMENT.read_text().splitlines() if line.startswith("| blocks of `/v1/messages`")
    )
    assert set(re.findall(r"`([a-z_]+)`", line)) == USER_BLOCKS | ASSISTANT_BLOCKS | RESULT_BLOCKS
