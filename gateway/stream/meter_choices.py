"""The meter of chat and completions streams. Usage is cumulative on each chunk, per sample; the last chunk
has the total.

Most chunks are one piece of text in mid-stream of a single sample, which `mid_stream` reads. Every other
chunk is decoded.
"""

from typing import Any

import orjson

from gateway.stream.answer_form import choices_written
from gateway.stream.events import EventSplitter
from gateway.stream.meter import (
    COUNT_MAX,
    USAGE_MISSING,
    Produced,
    ProtocolViolation,
    SampleCounts,
    cached_count,
    token_count,
    usage_anomaly,
)
from gateway.stream.mid_stream import MidStream

_DONE = b"data: [DONE]"
# Members of a delta that carry output.
_SAYS = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls", "function_call")
_DATA = b"data: "


class ChoicesMeter:
    """Implements `gateway.stream.meter.Meter` for `samples` choices of `prompts` prompts. `counts`: if set,
    it gets the output tokens so far for each event that is passed on. `last_chunk`: the chunk that said that
    the request was aborted, which is not passed on.
    """

    __slots__ = (
        "_chunks", "_counts", "_finished_samples", "_mid_stream", "_output", "_output_max",
        "_previous", "_prompt", "_sample_max", "_samples", "_splitter", "_total", "_wants_continuous",
        "_wants_usage", "aborted", "anomaly", "counts", "exact", "failed", "failure", "finished",
        "last_chunk", "model", "tier", "told",
    )  # fmt: skip

    def __init__(
        self,
        samples: int,
        prompts: int,
        output_tokens_max: int | None,
        wants_usage: bool,
        wants_continuous: bool,
    ) -> None:
        self._samples = samples
        self._sample_max = COUNT_MAX if output_tokens_max is None else output_tokens_max
        self._output_max = None if output_tokens_max is None else output_tokens_max * samples
        self._wants_usage = wants_usage
        self._wants_continuous = wants_usage and wants_continuous
        self._splitter = EventSplitter()
        self._counts = SampleCounts(max(1, samples // prompts), output_tokens_max)
        self._prompt = self._output = 0  # of the only sample, the fast path's figures
        self._chunks = 0  # chunks with output since the last usable figure
        self._finished_samples = 0
        self._previous = b""
        self._total: Produced | None = None
        self.finished = self.failed = self.aborted = self.exact = False
        self.failure = b""
        self.anomaly: str | None = None
        self.told: dict[str, Any] | None = None
        self.model: str | None = None
        self.tier: bytes | None = None
        self._mid_stream = MidStream()
        self.counts: list[int] | None = None
        self.last_chunk: dict[str, Any] | None = None

    def feed(self, chunk: bytes) -> bytes:
        if not self._splitter.rest:
            output = self._output + 1
            passed_on = self._mid_stream.next_token(chunk, self._prompt, output)
            if passed_on is not None and output <= self._sample_max:
                self._output, self._chunks, self._previous = output, 0, chunk[:-2]
                if self.counts is not None:
                    self.counts.append(output)
                return passed_on
        passed = []
        for event in self._splitter.split(chunk):
            passed_on = self._read_mid_stream(event)
            if passed_on is None:
                if event.startswith(b":") or not event:
                    continue
                passed_on = self._read_done(event) if event == _DONE else self._read_decoded(event)
            if passed_on is not None:
                passed.append(passed_on)
                if self.counts is not None:
                    self.counts.append(self.output_tokens())
            if self.failed:
                break
        return b"".join(passed)

    def written(self, event: bytes) -> bytes:
        """A chunk, which comes without its blank line, in the form in which the caller gets it."""
        return self._written_decoded(decoded_chunk(event), event)

    def produced(self) -> Produced:
        if self._total is not None:
            return self._total
        if self._samples == 1:
            output = self._output + self._chunks
            return Produced(self._prompt, 0, output, self._prompt) if output else Produced()
        return self._counts.produced(0)

    def output_tokens(self) -> int:
        if self._samples == 1:
            return self._output + self._chunks
        return self._counts.output_tokens()

    @property
    def has_ended(self) -> bool:
        """Whether the engine has finished the text, though perhaps not the stream."""
        return self._finished_samples >= self._samples and not self.aborted

    def counted(self) -> bool:
        return self._total is None and self._samples == 1 and self._chunks > 0

    def _read_mid_stream(self, event: bytes) -> bytes | None:
        """Read a chunk in mid-stream of a single sample: the event to pass on, with its blank line. None: it
        is to be decoded, and nothing was read.
        """
        piece = self._mid_stream.read(event)
        if piece is None:
            return None
        if piece.output is None:  # then chunks are counted until the engine's total comes
            self._chunks += 1
        elif self._output < piece.output <= self._sample_max:
            self._prompt, self._output, self._chunks = piece.prompt, piece.output, 0
            self._previous = event
        else:
            return None
        return piece.passed_on

    def _learn(self, event: bytes) -> None:
        """More chunks like this one may follow."""
        self._mid_stream.learn(event, self.model, self.tier)

    def _read_done(self, event: bytes) -> bytes:
        if self.finished:
            raise ProtocolViolation("[DONE] sent twice")
        # A minimal backend may leave finish reasons out. Without these and without final usage nothing shows
        # that this is the end.
        if self._finished_samples < self._samples and self._total is None:
            raise ProtocolViolation("[DONE] without a finish reason")
        self.finished = True
        self._mid_stream.forget()
        if self._total is None and self.anomaly is None:
            self.anomaly = USAGE_MISSING
        return event + b"\n\n"

    def _read_decoded(self, event: bytes) -> bytes | None:
        """Decode any other chunk. Returns what to pass on, with its blank line, in the caller's form."""
        if self.finished:
            raise ProtocolViolation("chunk after [DONE]")
        if not event.startswith(_DATA):
            raise ProtocolViolation("not a data event")
        chunk = decoded_chunk(event)
        if chunk.get("error") is not None:
            self.failed, self.failure = True, event[len(_DATA) :]
            return None
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise ProtocolViolation("chunk without choices")
        usage = chunk.get("usage")
        if not choices:
            self._read_total(usage)
            if self._total is not None and not self._total.output and not self._finished_samples:
                self.aborted = True  # aborted before its first token: then no chunk shows it
            return self._written_decoded(chunk, event) if self._wants_usage and not self.aborted else None
        if self._samples == 1 and isinstance(usage, dict):
            if event == self._previous and 0 < self._output == usage.get("completion_tokens"):
                raise ProtocolViolation("chunk sent twice")
            self._previous = event
        for choice in choices:
            self._read_choice(choice, usage)
        if self._samples == 1 and not self._finished_samples and not self._wants_continuous:
            self._learn(event)
        if self.aborted:  # aborted inside the engine: clients do not know this finish reason
            self.last_chunk = chunk
            return None
        if usage is None or self._wants_continuous:
            return self._written_decoded(chunk, event)
        del chunk["usage"]
        return self._written_decoded(chunk, None)

    def _written_decoded(self, chunk: dict[str, Any], event: bytes | None) -> bytes:
        """A chunk in the caller's form, with its blank line; `event` is its bytes, if they have the same
        content.
        """
        if event is not None and self.model is None and self.tier is None:
            return event + b"\n\n"
        return _DATA + choices_written(chunk, self.model, self.tier) + b"\n\n"

    def _read_choice(self, choice: Any, usage: Any) -> None:
        if (
            not isinstance(choice, dict)
            or type(index := choice.get("index")) is not int
            or not 0 <= index < self._samples
        ):
            raise ProtocolViolation("choice without a valid index")
        reason = choice.get("finish_reason")
        if self._samples == 1 and self._finished_samples and "finish_reason" in choice and reason is None:
            raise ProtocolViolation("chunk after the end")
        if reason is not None:
            self._finished_samples += 1
            self._mid_stream.forget()
            self.aborted = self.aborted or reason == "abort"
        if not isinstance(usage, dict):
            self._chunks += _says_something(choice)
            return
        try:
            prompt, output = token_count(usage, "prompt_tokens"), token_count(usage, "completion_tokens")
        except ValueError:
            self.anomaly = "usage_malformed"
            self._chunks += _says_something(choice)
            return
        if self._samples > 1:
            self._counts.saw(index, prompt, output)
            self.anomaly = self.anomaly or self._counts.anomaly
        elif prompt < 0 or output < 0 or output > self._sample_max:
            self.anomaly = "usage_above_max_tokens" if output > self._sample_max else "usage_negative"
            self._chunks += _says_something(choice)
        elif output < self._output:
            self.anomaly = "usage_backwards"
        else:
            self._prompt, self._output, self._chunks = prompt, output, 0

    def _read_total(self, usage: Any) -> None:
        """Read the final usage, which the bill uses. No text may follow it."""
        self._mid_stream.forget()
        if not isinstance(usage, dict):
            return
        try:
            prompt, output = token_count(usage, "prompt_tokens"), token_count(usage, "completion_tokens")
            cached = cached_count(usage, "prompt_tokens_details")
        except ValueError:
            self.anomaly = "usage_malformed"
            return
        self.anomaly = self.anomaly or usage_anomaly(prompt, cached, output, self._output_max)
        seen = self._output if self._samples == 1 else self._counts.output_tokens()
        if self.anomaly is None and output < seen:
            self.anomaly = "usage_backwards"
        if self.anomaly is not None:
            return
        self.exact = True
        so_far = self._counts.produced(cached) if self._samples > 1 else None
        if output == 0:
            self._total = Produced()
        elif so_far is not None and so_far.output == output:
            self._total = so_far
        else:
            self._total = Produced(prompt, cached, output, prompt)


def decoded_chunk(event: bytes) -> dict[str, Any]:
    """The object of a data event. Raises ProtocolViolation."""
    try:
        chunk = orjson.loads(event[len(_DATA) :])
    except orjson.JSONDecodeError as exc:
        raise ProtocolViolation("chunk is not JSON") from exc
    if not isinstance(chunk, dict):
        raise ProtocolViolation("chunk is not an object")
    return chunk


def _says_something(choice: dict[str, Any]) -> bool:
    """Whether a chunk carries output."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return bool(choice.get("text"))
    return any(delta.get(name) for name in _SAYS)
