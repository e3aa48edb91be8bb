"""What a caller of either dialect gets of a provider's answer, and what it is to get."""

import json
from typing import Any

from anthropic.types import Message
from openai.types.chat import ChatCompletion

from gateway.translate import ChatStream, MessagesStream, chat_answer, message_answer
from tests.gateway.translate import providers
from tests.gateway.translate.providers import Answer


def chat_stream(*, include_usage: bool = True) -> ChatStream:
    return ChatStream(answer_id="chatcmpl-1", model="ours", created=9, include_usage=include_usage)


def messages_stream() -> MessagesStream:
    return MessagesStream(answer_id="msg_1", model="ours")


def to_chat(answer: dict[str, Any]) -> ChatCompletion:
    said = chat_answer(json.dumps(answer).encode(), answer_id="chatcmpl-1", model="ours", created=9)
    return ChatCompletion.model_validate_json(said, strict=True)


def to_message(answer: dict[str, Any]) -> Message:
    return Message.model_validate_json(
        message_answer(json.dumps(answer).encode(), answer_id="msg_1", model="ours")
    )


def chat_of(answer: Answer) -> dict[str, Any]:
    """What a chat caller is to have."""
    return {
        "model": "ours", "id": "chatcmpl-1", "created": 9, "object": "chat.completion",
        "content": answer.text or None, "refusal": None, "thinking": answer.thinking or None,
        "calls": [(id_, name, json.loads(given or "{}")) for id_, name, given in answer.calls],
        "finish": answer.finish_reason, "sequence": answer.sequence, "usage": providers.chat_usage(answer),
    }  # fmt: skip


def seen_in_chat(read: ChatCompletion) -> dict[str, Any]:
    choice = read.choices[0]
    said: Any = choice.message
    assert read.usage is not None
    return {
        "model": read.model, "id": read.id, "created": read.created, "object": read.object,
        "content": said.content, "refusal": said.refusal,
        "thinking": getattr(said, "reasoning_content", None),
        "calls": [
            (call.id, call.function.name, json.loads(call.function.arguments))
            for call in said.tool_calls or ()
        ],
        "finish": choice.finish_reason, "sequence": getattr(choice, "stop_reason", None),
        "usage": read.usage.model_dump(exclude_unset=True),
    }  # fmt: skip


def message_seen(read: Message) -> dict[str, Any]:
    content = [block.model_dump(exclude_unset=True) for block in read.content]
    for block in content:
        block.pop("signature", None)
        for absent in [name for name, value in block.items() if value is None]:
            del block[absent]
    usage = read.usage
    return {
        "model": read.model, "id": read.id, "content": content, "stop": read.stop_reason,
        "sequence": read.stop_sequence, "uncached": usage.input_tokens,
        "cached": usage.cache_read_input_tokens, "written": usage.cache_creation_input_tokens,
        "output": usage.output_tokens,
        "thought": usage.output_tokens_details and usage.output_tokens_details.thinking_tokens,
    }  # fmt: skip


def message_expected(answer: Answer) -> dict[str, Any]:
    """What a messages caller is to have."""
    whole = providers.message(answer)
    content = [
        {name: one for name, one in block.items() if name != "signature"} for block in whole["content"]
    ]
    return {
        "model": "ours", "id": "msg_1", "content": content, "stop": answer.stop_reason,
        "sequence": answer.sequence, "uncached": answer.uncached, "cached": answer.cached,
        "written": answer.written, "output": answer.output, "thought": answer.thought,
    }  # fmt: skip


def fed(stream: ChatStream | MessagesStream, pieces: list[bytes]) -> bytes:
    return b"".join([stream.feed(piece) for piece in pieces])
