"""The meters of streams with typed events: Anthropic messages and OpenAI responses. Their usage comes only at
the beginning and the end.

In between the output is counted by text events, which is good enough for a checkpoint and is never billed.
"""

import re
from typing import Any

import orjson

from gateway.stream.answer_form import item_written, message_written, response_written
from gateway.stream.events import EventSplitter
from gateway.stream.meter import (
    COUNT_MAX,
    USAGE_MISSING,
    Produced,
    ProtocolViolation,
    cached_count,
    optional_count,
    token_count,
    usage_anomaly,
)

# Engines send these events before they have produced anything. They are held until something follows, so that
# another engine can still answer until then.
_BEFORE_ANY_TOKEN = frozenset({b"response.created", b"response.queued", b"response.in_progress"})

_NUMBER_NAME = b'"sequence_number":'
_NUMBER = re.compile(_NUMBER_NAME + rb" ?(\d{1,18})\b")


class TypedMeter:
    """What both have in common: splitting, the type of an event, counting deltas. Implements
    `gateway.stream.meter.Meter`.
    """

    __slots__ = (
        "_deltas", "_held", "_output_max", "_prompt", "_splitter", "_total", "aborted", "anomaly", "exact",
        "failed", "failure", "finished", "model", "tier", "told",
    )  # fmt: skip

    def __init__(self, output_tokens_max: int | None) -> None:
        self._output_max = output_tokens_max
        self._splitter = EventSplitter()
        self._deltas = 0
        self._held: list[bytes] = []
        self._prompt = 0
        self._total: Produced | None = None
        self.finished = self.failed = self.aborted = self.exact = False
        self.failure = b""
        self.anomaly: str | None = None
        self.told: dict[str, Any] | None = None
        self.model: str | None = None
        self.tier: bytes | None = None

    def feed(self, chunk: bytes) -> bytes:
        passed: list[bytes] = []
        for event in self._splitter.split(chunk):
            if not event or event.startswith(b":"):
                continue
            line_end = event.find(b"\n")
            if not event.startswith(b"event: ") or event[line_end + 1 : line_end + 7] != b"data: ":
                if event == b"data: [DONE]" and self.finished:
                    continue
                raise ProtocolViolation("not a typed event")
            if self.finished:
                raise ProtocolViolation("event after the end")
            kind = event[7:line_end]
            self._check_order(event)
            if kind.endswith(b"delta") and kind != b"message_delta":
                self._deltas += 1
                rewritten = None
            else:
                rewritten = self._read_event(kind, event[line_end + 7 :])
                if self.model is None and self.tier is None:
                    rewritten = None
            if self.failed:
                break
            self._held.append(event if rewritten is None else event[: line_end + 7] + rewritten)
            if kind not in _BEFORE_ANY_TOKEN:
                passed += self._held
                self._held.clear()
        if not passed:
            return b""
        passed.append(b"")
        return b"\n\n".join(passed)

    def produced(self) -> Produced:
        if self._total is not None:
            return self._total
        if self._deltas == 0:
            return Produced()
        return Produced(self._prompt, 0, self._deltas, self._prompt)

    def output_tokens(self) -> int:
        return self._deltas if self._total is None else self._total.output

    def counted(self) -> bool:
        return self._total is None and self._deltas > 0

    def _check_order(self, event: bytes) -> None:
        """For a dialect with numbered events: raises ProtocolViolation if an event comes twice or too
        late.
        """

    def _read_event(self, kind: bytes, text: bytes) -> bytes | None:
        """Read an event. Returns what to pass on in place of `text`, None for `text` itself."""
        raise NotImplementedError

    def _decode(self, text: bytes) -> dict[str, Any]:
        try:
            event = orjson.loads(text)
        except orjson.JSONDecodeError as exc:
            raise ProtocolViolation("event is not JSON") from exc
        if not isinstance(event, dict):
            raise ProtocolViolation("event is not an object")
        return event

    def _take_total(self, prompt: int, cached: int, output: int) -> None:
        self.anomaly = self.anomaly or usage_anomaly(prompt, cached, output, self._output_max)
        if self.anomaly is None:
            self._total = Produced(prompt, cached, output, prompt) if output else Produced()
            self.exact = True

    def _end(self) -> None:
        self.finished = True
        if self._total is None and self.anomaly is None:
            self.anomaly = USAGE_MISSING


class MessagesMeter(TypedMeter):
    """Anthropic's dialect: `message_start` has the prompt, `message_delta` the split and the output,
    `message_stop` ends it.
    """

    __slots__ = ()

    def _read_event(self, kind: bytes, text: bytes) -> bytes | None:
        if kind == b"message_start":
            start = self._decode(text)
            message = _object(start, "message")
            self._read_start(message)
            return message_written(start, message, self.model, self.tier)
        if kind == b"message_delta":
            delta = self._decode(text)
            if delta.get("usage") is not None:
                self._read_usage(_object(delta, "usage"))
        elif kind == b"message_stop":
            self._end()
        elif kind == b"error":
            self.failed, self.failure = True, text
        return None

    def _read_start(self, message: dict[str, Any]) -> None:
        prompt = _object(message, "usage").get("input_tokens")
        self._prompt = prompt if type(prompt) is int and 0 < prompt <= COUNT_MAX else 0

    def _read_usage(self, usage: dict[str, Any]) -> None:
        try:
            self._take_total(*messages_usage(usage))
        except ValueError:
            self.anomaly = "usage_malformed"


class ResponsesMeter(TypedMeter):
    """OpenAI's responses: numbered events, and one closing event with the whole response and its usage."""

    __slots__ = ("_number",)

    def __init__(self, output_tokens_max: int | None) -> None:
        super().__init__(output_tokens_max)
        self._number = -1

    def _check_order(self, event: bytes) -> None:
        # The last match: objects inside the event come before its own number.
        found = _NUMBER.match(event, max(0, event.rfind(_NUMBER_NAME)))
        if found is not None:
            number = int(found[1])
            if number <= self._number:
                raise ProtocolViolation("event sent twice or out of order")
            self._number = number

    def _read_event(self, kind: bytes, text: bytes) -> bytes | None:
        if kind in {b"response.failed", b"error"}:
            self.failed, self.failure = True, text
        ends = kind in {b"response.completed", b"response.incomplete"}
        if not ends and kind not in _BEFORE_ANY_TOKEN:
            return item_written(text)
        decoded = self._decode(text)
        response = _object(decoded, "response")
        if ends:
            self._read_usage(response.get("usage"))
            self._end()
        return self._written(decoded, response)

    def _written(self, event: dict[str, Any], response: dict[str, Any]) -> bytes:
        return response_written(event, response, self.model, self.tier)

    def _read_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            try:
                self._take_total(*responses_usage(usage))
            except ValueError:
                self.anomaly = "usage_malformed"


def _object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    """A member that is an object; an empty one if it is something else."""
    member = parent.get(name)
    return member if isinstance(member, dict) else {}


def messages_usage(usage: dict[str, Any]) -> tuple[int, int, int]:
    """Prompt, cached, output of an Anthropic usage object: its `input_tokens` excludes what was cached.
    Raises ValueError.
    """
    created, cached = (optional_count(usage, f"cache_{kind}_input_tokens") for kind in ("creation", "read"))
    return token_count(usage, "input_tokens") + created + cached, cached, token_count(usage, "output_tokens")


def responses_usage(usage: dict[str, Any]) -> tuple[int, int, int]:
    """Prompt, cached, output of a responses usage object. Raises ValueError."""
    return (
        token_count(usage, "input_tokens"),
        cached_count(usage, "input_tokens_details"),
        token_count(usage, "output_tokens"),
    )
