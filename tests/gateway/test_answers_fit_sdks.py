"""What the official SDKs' types say of an answer holds for ours: every member has its type, and none that
they do not know is null.
"""

from typing import Any

import anthropic.types
import openai.types
import openai.types.chat
import openai.types.responses
import pytest
from pydantic import BaseModel, TypeAdapter

from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import Catalogue, StartGateway
from tests.gateway.asking import ROUTES, ask

WHOLE: dict[str, Any] = {
    "chat": openai.types.chat.ChatCompletion,
    "completions": openai.types.Completion,
    "responses": openai.types.responses.Response,
    "messages": anthropic.types.Message,
}
EVENTS: dict[str, Any] = {
    "chat": openai.types.chat.ChatCompletionChunk,
    "completions": openai.types.Completion,
    "responses": openai.types.responses.ResponseStreamEvent,
    "messages": anthropic.types.RawMessageStreamEvent,
}
TOOL = {"name": "save", "parameters": {"type": "object", "properties": {}}}
TOOLS: dict[str, dict[str, Any]] = {
    "chat": {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"},
    "responses": {"tools": [{"type": "function", "strict": False} | TOOL], "tool_choice": "required"},
    "messages": {
        "tools": [{"name": "save", "input_schema": TOOL["parameters"]}],
        "tool_choice": {"type": "any"},
    },
}


def unknown_nulls(value: Any) -> list[str]:
    """The names of members that are null and that no type of the SDK has."""
    if isinstance(value, list):
        return [name for one in value for name in unknown_nulls(one)]
    if not isinstance(value, BaseModel):
        return []
    extra = value.model_extra or {}
    inner = [name for one in value.__dict__.values() for name in unknown_nulls(one)]
    return [name for name, one in extra.items() if one is None] + inner


def check(kind: Any, answer: dict[str, Any]) -> None:
    """Strictly: an SDK itself takes whatever comes."""
    read = TypeAdapter(kind).validate_python(answer)
    assert not unknown_nulls(read), answer


@pytest.mark.parametrize("route", ROUTES)
def test_answers_are_what_the_sdks_types_say(
    route: str, engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    key, gateway = catalogue.key(catalogue.tenant("ten_a")), start_gateway()
    usage = {"stream_options": {"include_usage": True}} if route in {"chat", "completions"} else {}
    for more in ({}, TOOLS.get(route, {})):
        check(WHOLE[route], ask(gateway, key, route, **more).json)
        streamed = ask(gateway, key, route, True, **usage, **more)
        assert streamed.done
        for event in streamed.events:
            # the SDK has one type for whole and streamed: null is what OpenAI streams too
            if route == "completions":
                event["choices"] = [
                    one | {"finish_reason": one["finish_reason"] or "stop"} for one in event["choices"]
                ]
            check(EVENTS[route], event)
