"""Answers of /v1/messages, in Anthropic's dialect as vLLM speaks it."""

from typing import Any

import orjson

from loadtest.engine.answer import Answer
from loadtest.engine.sequence import Sequence

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def _event(name: str, content: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name} | content))


class MessagesAnswer(Answer):
    """A message with one block of text, which opens with the first text that may be shown."""

    _block_open = False

    def _on_first_token(self) -> list[bytes]:
        prompt = self.sequences[0].prompt_tokens
        message: dict[str, Any] = {
            "id": self.id, "type": "message", "role": "assistant", "content": [], "model": self.job.model, "stop_reason": None,
            "stop_sequence": None, "usage": {"input_tokens": prompt, "output_tokens": 0},
        }  # fmt: skip
        return [_event("message_start", {"message": message})]

    def _on_token(self, sequence: Sequence, text: str) -> list[bytes]:
        if not text:
            return []
        delta = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":%b},"index":0}\n\n'
            % (orjson.dumps(text))
        )
        if self._block_open:
            return [delta]
        self._block_open = True
        return [_event("content_block_start", {"content_block": {"type": "text", "text": ""}, "index": 0}), delta]

    def _on_end(self) -> list[bytes]:
        sequence = self.sequences[0]
        events = [_event("content_block_stop", {"index": 0})] if self._block_open else []
        # Ended before the first token vLLM has no reason to tell and says "end_turn".
        reason, stop = self._stop_reason(sequence) if sequence.output else ("end_turn", None)
        message_delta: dict[str, Any] = {"delta": {"stop_reason": reason, "stop_sequence": stop}}
        usage = self.usage()
        if usage is not None:
            message_delta["usage"] = usage.messages()
        return [*events, _event("message_delta", message_delta), _event("message_stop", {})]

    def _stop_reason(self, sequence: Sequence) -> tuple[str | None, str | None]:
        if sequence.stop_reason is not None:
            return "stop_sequence", sequence.stop_reason
        return _STOP_REASONS.get(self.finish_of(sequence) or ""), None

    def _whole(self) -> dict[str, Any]:
        sequence = self.sequences[0]
        reason, stop = self._stop_reason(sequence)
        usage = None if self._plan.end_after_tokens is not None else self.usage()
        answer: dict[str, Any] = {
            "id": self.id, "type": "message", "role": "assistant",
            "content": [{"type": "text", "text": "".join(self.texts[0])}], "model": self.job.model,
        }  # fmt: skip
        # Absent, not null: vLLM leaves out what is None here.
        answer |= {
            name: value for name, value in (("stop_reason", reason), ("stop_sequence", stop)) if value is not None
        }
        return answer if usage is None else answer | {"usage": usage.messages()}
