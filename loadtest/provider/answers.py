"""Answers in the form in which the providers themselves give them, made from the engine's."""

from collections.abc import Mapping
from typing import Any, Final
from uuid import uuid4

import orjson

from loadtest.engine.answer import Answer
from loadtest.engine.answer_chat import ChatAnswer
from loadtest.engine.answer_completions import CompletionAnswer
from loadtest.engine.answer_messages import MessagesAnswer
from loadtest.engine.answer_responses import ResponsesAnswer
from loadtest.engine.usage import Usage

# Of the snapshot that answers, as providers call it.
SNAPSHOT: Final = "-2026-01-01"
# So that a test can search a caller's answer for it.
FINGERPRINT: Final = "fp_of_the_provider"
_ENGINE_ONLY: Final = (
    "prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params",
    "metrics", "input_messages", "output_messages",
)  # fmt: skip
_ENGINE_ONLY_OF_CHOICE: Final = (
    "stop_reason",
    "token_ids",
    "routed_experts",
    "prompt_token_ids",
    "prompt_logprobs",
)
_DATA: Final = b"data: "


class _Formed(Answer):
    """An answer whose events go through `_form`. It has an id of the provider's own."""

    id_prefix = ""

    def _named(self, answer: dict[str, Any]) -> dict[str, Any]:
        answer["id"] = self._own_id()
        answer["model"] = self.job.model + SNAPSHOT
        for name in _ENGINE_ONLY:
            answer.pop(name, None)
        return answer

    def _own_id(self) -> str:
        if not hasattr(self, "_provider_id"):
            self._provider_id = self.id_prefix + uuid4().hex
        return self._provider_id

    def _form(self, event: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _send_all(self, events: list[bytes]) -> None:
        super()._send_all([self._formed(event) for event in events])

    def _formed(self, event: bytes) -> bytes:
        head, data, text = event.partition(_DATA)
        if not data or text.startswith(b"[DONE]"):
            return event
        return head + data + orjson.dumps(self._form(orjson.loads(text))) + b"\n\n"


class _OpenAiChoices(_Formed):
    id_prefix = "chatcmpl-provider"

    def _form(self, event: dict[str, Any]) -> dict[str, Any]:
        for choice in self._named(event)["choices"]:
            for name in _ENGINE_ONLY_OF_CHOICE:
                choice.pop(name, None)
        event |= {"system_fingerprint": FINGERPRINT, "service_tier": "default"}
        if event.get("usage") is not None:
            event["usage"] = _openai_usage(event["usage"])
        elif self.job.include_usage:
            event["usage"] = None
        return event


class OpenAiChat(_OpenAiChoices, ChatAnswer):
    """Chat completions: null usage on each chunk where it is asked for, and one chunk with all of it."""

    def _whole(self) -> dict[str, Any]:
        return self._form(ChatAnswer._whole(self))


class OpenAiCompletion(_OpenAiChoices, CompletionAnswer):
    """Completions."""

    id_prefix = "cmpl-provider"

    def _whole(self) -> dict[str, Any]:
        return self._form(CompletionAnswer._whole(self))


class OpenAiResponse(_Formed, ResponsesAnswer):
    """Responses."""

    id_prefix = "resp_provider"

    def _form(self, event: dict[str, Any]) -> dict[str, Any]:
        if isinstance(event.get("response"), dict):
            self._named(event["response"])
        return event

    def _whole(self) -> dict[str, Any]:
        return self._named(super()._whole())


class AnthropicMessage(_Formed, MessagesAnswer):
    """Messages: the prompt's figures come at the beginning alone, the output's at the end."""

    id_prefix = "msg_provider"

    def _form(self, event: dict[str, Any]) -> dict[str, Any]:
        if event["type"] == "message_start":
            message = self._named(event["message"])
            usage = self.usage()
            message.pop("usage", None)
            if usage is not None:
                message["usage"] = usage.messages() | {"output_tokens": 1, "service_tier": "standard"}
        elif event["type"] == "message_delta" and "usage" in event:
            event["usage"] = {"output_tokens": event["usage"]["output_tokens"]}
        return event

    def _on_first_token(self) -> list[bytes]:
        return [*super()._on_first_token(), b'event: ping\ndata: {"type": "ping"}\n\n']

    def _whole(self) -> dict[str, Any]:
        return self._named(super()._whole())


def _openai_usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {
        **usage,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def embeddings(model: str, inputs: list[str], usage: Usage) -> dict[str, Any]:
    """An answer of /v1/embeddings."""
    data = [
        {"object": "embedding", "index": index, "embedding": [float(len(text)), 0.5]}
        for index, text in enumerate(inputs)
    ]
    return {
        "object": "list", "data": data, "model": model + SNAPSHOT,
        "usage": {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt},
    }  # fmt: skip
