"""Answers of /v1/messages, in Anthropic's dialect as vLLM speaks it."""

from typing import Any

import orjson

from loadtest.engine.answer import Answer
from loadtest.engine.sequence import Sequence

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def _event(name: str, content: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name} | content))


class MessagesAnswer(Answer):
    """A message: blocks of thought, text or tool use, each of which opens with the first token that may be
    shown in it.
    """

    _block: str | None = None
    _index = 0

    def _on_first_token(self) -> list[bytes]:
        prompt = self.sequences[0].prompt_tokens
        message: dict[str, Any] = {
            "id": self.id, "type": "message", "role": "assistant", "content": [], "model": self.job.model,
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": prompt, "output_tokens": 0},
        }  # fmt: skip
        return [_event("message_start", {"message": message})]

    def _on_token(self, sequence: Sequence, text: str) -> list[bytes]:
        kind = self._kind(sequence)
        if kind == "tool_use":
            text = self.speech.arguments(sequence, text)
        if not text and not (kind == "tool_use" and self.speech.opens_call(sequence)):
            return []
        events = [] if self._block == kind else [*self._close_block(), self._open_block(kind)]
        if not text:
            return events
        if kind == "text":
            delta = b'{"type":"text_delta","text":%b}' % orjson.dumps(text)
        else:
            name, field = (
                ("thinking_delta", "thinking") if kind == "thinking" else ("input_json_delta", "partial_json")
            )
            delta = orjson.dumps({"type": name, field: text})
        events.append(
            b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":%b,"index":%d}\n\n'
            % (delta, self._index)
        )
        return events

    def _kind(self, sequence: Sequence) -> str:
        if self.speech.is_reasoning(sequence):
            return "thinking"
        return "text" if self.speech.tool is None else "tool_use"

    def _open_block(self, kind: str) -> bytes:
        self._block = kind
        return _event(
            "content_block_start", {"content_block": self._part(kind, "", {}), "index": self._index}
        )

    def _close_block(self) -> list[bytes]:
        if self._block is None:
            return []
        self._block = None
        self._index += 1
        return [_event("content_block_stop", {"index": self._index - 1})]

    def _part(self, kind: str, text: str, given: dict[str, Any]) -> dict[str, Any]:
        if kind == "tool_use":
            return {"type": "tool_use", "id": self.speech.tool_id, "name": self.speech.tool, "input": given}
        return {"type": kind, kind: text}

    def _on_end(self) -> list[bytes]:
        sequence = self.sequences[0]
        events = self._close_block()
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
        finish = self.finish_of(sequence)
        if finish == "stop" and self.speech.tool is not None:
            return "tool_use", None
        return _STOP_REASONS.get(finish or ""), None

    def _whole(self) -> dict[str, Any]:
        sequence = self.sequences[0]
        reason, stop = self._stop_reason(sequence)
        usage = None if self._plan.end_after_tokens is not None else self.usage()
        answer: dict[str, Any] = {
            "id": self.id, "type": "message", "role": "assistant",
            "content": self._content(sequence), "model": self.job.model,
        }  # fmt: skip
        # Absent, not null: vLLM leaves out what is None here.
        answer |= {
            name: value
            for name, value in (("stop_reason", reason), ("stop_sequence", stop))
            if value is not None
        }
        return answer if usage is None else answer | {"usage": usage.messages()}

    def _content(self, sequence: Sequence) -> list[dict[str, Any]]:
        speech, texts = self.speech, self.texts[0]
        thought, rest = "".join(texts[: speech.reasoning_tokens]), "".join(texts[speech.reasoning_tokens :])
        content = [self._part("thinking", thought, {})] if thought else []
        if speech.tool is None:
            return [*content, self._part("text", rest, {})]
        whole = sequence.finish == "stop"
        return [
            *content,
            self._part(
                "tool_use", "", orjson.loads(speech.whole_arguments(sequence, texts)) if whole else {}
            ),
        ]
