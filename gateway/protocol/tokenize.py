"""`/tokenize`: counts a prompt or messages and generates nothing."""

from typing import Any

from gateway.errors import InvalidRequest
from gateway.protocol import chat, completions
from gateway.protocol.chat import check_generation_prompt, check_messages
from gateway.protocol.fields import Checker, anything, boolean, check_fields, echoed, missing, string
from gateway.protocol.sampling import check_model, check_template_kwargs, model_of
from gateway.protocol.text_size import TOKENS_PER_MESSAGE, text_bytes, tokens_of_bytes
from gateway.protocol.tools import check_chat_tools, tools_bytes
from gateway.request import ParsedRequest, RouteSpec

CHAT_ONLY = frozenset({"add_generation_prompt", "chat_template_kwargs", "continue_final_message", "tools"})


def parse(route: RouteSpec, body: dict[str, Any]) -> ParsedRequest:
    """Raises InvalidRequest for the first thing that does not fit."""
    check_fields(body, FIELDS)
    model = model_of(body)
    prompt: str | None = body.get("prompt")
    if prompt is not None:
        for name in ("messages", *sorted(CHAT_ONLY)):
            if body.get(name) is not None:
                raise InvalidRequest(f"Invalid '{name}': not together with prompt.", name)
        tokens = tokens_of_bytes(text_bytes(prompt))
    elif body.get("messages") is None:
        raise missing("prompt")
    else:
        check_generation_prompt(body)
        size = check_messages(body["messages"]) + tools_bytes(body)
        tokens = tokens_of_bytes(size) + TOKENS_PER_MESSAGE * len(body["messages"])
    return ParsedRequest(
        route=route,
        model=model,
        stream=False,
        samples=0,
        prompts=1,
        input_tokens_estimate=tokens,
        max_output_tokens=0,
        wants_usage=False,
        wants_continuous_usage=False,
        body=body,
    )


# What only an answer would need may be there, and is not looked at.
FIELDS: dict[str, Checker] = {
    **dict.fromkeys({*chat.FIELDS, *completions.FIELDS}, echoed),
    "add_generation_prompt": boolean,
    "add_special_tokens": boolean,
    "chat_template_kwargs": check_template_kwargs,
    "continue_final_message": boolean,
    "messages": anything,
    "model": check_model,
    "prompt": string(),
    "return_token_strs": boolean,
    "tools": check_chat_tools,
}
