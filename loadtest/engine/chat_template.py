"""Messages of the three chat dialects rendered to one prompt text."""

from typing import Any

import orjson

from loadtest.engine.errors import BadRequest, Invalid
from loadtest.engine.fields import Body, required_list

_TEXT_PARTS = ("text", "input_text", "output_text", "reasoning_text", "summary_text")
GENERATION_PROMPT = "<|im_start|>assistant\n"


def render_chat(body: Body) -> tuple[str, str]:
    """(prompt, text of the final assistant message that is to be continued) of a chat request."""
    messages = required_list(body, "messages")
    if not messages:
        raise BadRequest("Cannot apply chat template to an empty conversation. Provide at least one message.")
    continued = ""
    if body.get("continue_final_message"):
        if body.get("add_generation_prompt", True):
            raise BadRequest("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
        continued = _content(messages[-1].get("content"), str(body.get("model")))
        messages = messages[:-1]
    return _render(messages, body), continued


def render_messages(body: Body) -> str:
    """The prompt of an Anthropic request."""
    messages = list(required_list(body, "messages"))
    if body.get("system"):
        messages.insert(0, {"role": "system", "content": body["system"]})
    return _render(messages, body)


def render_responses(body: Body) -> str:
    """The prompt of a Responses request."""
    if "input" not in body:
        raise Invalid("missing", "body.input", "Field required", body)
    given = body["input"]
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    return _render(messages, body)


def _render(messages: list[Any], body: Body) -> str:
    tools = body.get("tools")
    parts = [f"<|im_start|>tools\n{orjson.dumps(tools).decode()}<|im_end|>\n"] if tools else []
    for message in messages:
        if not isinstance(message, dict):
            raise Invalid(
                "model_attributes_type", "body.messages", "Input should be a valid dictionary", message
            )
        text = _content(message.get("content"), str(body.get("model")))
        extra = {name: message[name] for name in ("tool_calls", "output", "arguments") if message.get(name)}
        if extra:
            text += orjson.dumps(extra).decode()
        parts.append(f"<|im_start|>{message.get('role', 'tool')}\n{text}<|im_end|>\n")
    return "".join(parts) + GENERATION_PROMPT


def _content(content: object, model: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Invalid("string_type", "body.messages", "Input should be a valid string", content)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXT_PARTS:
            texts.append(str(part.get("text", "")))
        elif kind in ("thinking", "refusal"):
            texts.append(str(part.get(kind) or ""))
        elif kind == "redacted_thinking":  # nobody can read it
            continue
        elif kind in ("tool_use", "tool_result"):
            texts.append(orjson.dumps(part).decode())
        else:
            raise BadRequest(f"{model} is not a multimodal model")
    return "".join(texts)
