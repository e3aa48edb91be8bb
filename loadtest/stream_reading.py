"""What a caller sees of one stream, whichever dialect it is in: pieces of text, usage, errors, whether it
ended as it should. No I/O.
"""

from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(slots=True)
class StreamReading:
    """Fed line by line. `usage` is (prompt, output) as told at the end."""

    text_events: int = 0
    usage: tuple[int, int] | None = None
    ended: bool = False
    error: str | None = None

    def feed(self, line: bytes) -> bool:
        """Take one line; whether it brought text."""
        line = line.strip()
        if not line.startswith(b"data:"):
            return False
        content = line[5:].strip()
        if content == b"[DONE]":
            self.ended = True
            return False
        event: dict[str, Any] = orjson.loads(content)
        kind = event.get("type")
        if event.get("error") is not None or kind == "error":
            error = event.get("error") or event
            self.error = str(error.get("code") or error.get("type") or "error")
            return False
        text = self._openai(event) if "choices" in event else self._typed(kind, event)
        self.text_events += text
        return text

    def _openai(self, event: dict[str, Any]) -> bool:
        if usage := event.get("usage"):
            self.usage = usage["prompt_tokens"], usage["completion_tokens"]
        return any(
            choice.get("text") or choice.get("delta", {}).get("content") for choice in event["choices"]
        )

    def _typed(self, kind: str | None, event: dict[str, Any]) -> bool:
        match kind:
            case "content_block_delta":
                return bool(event["delta"].get("text"))
            case "message_delta":
                usage = event["usage"]
                cached = (usage.get("cache_creation_input_tokens") or 0) + (
                    usage.get("cache_read_input_tokens") or 0
                )
                self.usage = usage["input_tokens"] + cached, usage["output_tokens"]
            case "message_stop":
                self.ended = True
            case "response.output_text.delta":
                return bool(event["delta"])
            case "response.completed" | "response.incomplete":
                usage = event["response"]["usage"]
                self.usage = usage["input_tokens"], usage["output_tokens"]
                self.ended = True
        return False
