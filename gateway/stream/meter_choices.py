"""The meter of chat and completions streams. Usage is cumulative on each chunk, per sample; the last chunk
has the total.

Most chunks are one piece of text in mid-stream, of a single sample, and differ in that text and the figures
alone: one regular expression reads those, and their text is passed on as it is. Every other chunk is decoded.
"""

import re
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

# A text that is not empty, as JSON. No byte of it can end an event.
_TEXT = rb'"(?!")[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
# A chunk in mid-stream after its opening, as vLLM writes it. Of its members that are null only those that the
# vendors send, too, are in the first group. Figures of more digits are decoded, and refused.
_MID_STREAM = re.compile(
    rb'(\{"index":0,(?:"text":%b'
    rb'|"delta":\{(?:"(?:content|reasoning|reasoning_content)":%b'
    rb'|"tool_calls":\[\{"index":\d+,"function":\{"arguments":%b\}\}\])\}'
    rb'),(?:"logprobs":null,)?"finish_reason":null)'
    rb'(?:,"(?:stop_reason|prompt_token_ids|token_ids)":null)*+\}\]'
    rb'(?:,"usage":\{"prompt_tokens":(\d{1,9}),"total_tokens":\d+,"completion_tokens":(\d{1,9})'
    rb"(?:,[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+)?\})?\}" % (_TEXT, _TEXT, _TEXT)
)
_MID_STREAM_END = b"}]}\n\n"
_CHUNK = b'data: {"'
_MODEL = b',"model":"'
_CHOICES = b',"choices":['
_TIER = b'"service_tier"'
_NULL = b'":null'
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
        "_chunks", "_counts", "_finished_samples", "_opening", "_opening_written", "_output", "_output_max",
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
        # Of this stream's chunks, up to their choices. None: no chunk is read without decoding it.
        self._opening: bytes | None = None
        self._opening_written = b""
        self.counts: list[int] | None = None
        self.last_chunk: dict[str, Any] | None = None

    def feed(self, chunk: bytes) -> bytes:
        if not self._splitter.rest and chunk.endswith(b"\n\n"):
            passed_on = self._read_mid_stream(chunk[:-2])
            if passed_on is not None:
                return passed_on
        passed = []
        for event in self._splitter.split(chunk):
            passed_on = self._read_mid_stream(event)
            if passed_on is not None:
                passed.append(passed_on)
                continue
            if event.startswith(b":") or not event:
                continue
            if event == _DONE:
                self._read_done()
                kept: bytes | None = event
            else:
                kept = self._read_decoded(event)
            if kept is not None:
                passed.append(kept + b"\n\n")
                if self.counts is not None:
                    self.counts.append(self.output_tokens())
            if self.failed:
                break
        return b"".join(passed)

    def written(self, event: bytes) -> bytes:
        """A chunk, without its blank line, in the form in which the caller gets it."""
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
        if self._opening is None or not event.startswith(self._opening):
            return None
        found = _MID_STREAM.fullmatch(event, len(self._opening))
        if found is None:
            return None
        said, prompt, figure = found.groups()
        if figure is None:  # the engine reports no usage on chunks: they are counted until its total comes
            self._chunks += 1
        else:
            output = int(figure)
            if not self._output < output <= self._sample_max:
                return None
            self._prompt, self._output, self._chunks = int(prompt), output, 0
            self._previous = event
        if self.counts is not None:
            self.counts.append(self._output + self._chunks)
        return b"%b%b%b" % (self._opening_written, said, _MID_STREAM_END)

    def _learn_opening(self, event: bytes) -> None:
        """Learn the bytes before the choices, if the model is the last member there: nothing in them was
        generated.
        """
        model_at, choices_at = event.find(_MODEL), event.find(_CHOICES)
        one_member = 0 <= model_at < choices_at and event.count(b'":', model_at, choices_at) == 1
        opening = event[: choices_at + len(_CHOICES)]
        if not one_member or not event.startswith(_CHUNK) or _TIER in opening or _NULL in opening:
            return
        model = event[model_at:choices_at] if self.model is None else b',"model":' + orjson.dumps(self.model)
        tier = b"" if self.tier is None else b'"service_tier":"%b",' % self.tier
        self._opening = opening
        self._opening_written = b"data: {%b%b%b%b" % (
            tier,
            event[len(_CHUNK) - 1 : model_at],
            model,
            _CHOICES,
        )

    def _read_done(self) -> None:
        if self.finished:
            raise ProtocolViolation("[DONE] sent twice")
        # A minimal backend may leave finish reasons out. Without these and without final usage nothing shows
        # that this is the end.
        if self._finished_samples < self._samples and self._total is None:
            raise ProtocolViolation("[DONE] without a finish reason")
        self.finished, self._opening = True, None
        if self._total is None and self.anomaly is None:
            self.anomaly = USAGE_MISSING

    def _read_decoded(self, event: bytes) -> bytes | None:
        """Decode any other chunk. Returns what to pass on, without its blank line, in the caller's form."""
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
            return self.written(event) if self._wants_usage and not self.aborted else None
        if self._samples == 1 and isinstance(usage, dict):
            if event == self._previous and 0 < self._output == usage.get("completion_tokens"):
                raise ProtocolViolation("chunk sent twice")
            self._previous = event
        for choice in choices:
            self._read_choice(choice, usage)
        if self._samples == 1 and not self._finished_samples and not self._wants_continuous:
            self._learn_opening(event)
        if self.aborted:  # aborted inside the engine: clients do not know this finish reason
            self.last_chunk = chunk
            return None
        if usage is None or self._wants_continuous:
            return self._written_decoded(chunk, event)
        del chunk["usage"]
        return self._written_decoded(chunk, None)

    def _written_decoded(self, chunk: dict[str, Any], event: bytes | None) -> bytes:
        """A chunk in the caller's form; `event` is its bytes, if they have the same content."""
        if event is not None and self.model is None and self.tier is None:
            return event
        return _DATA + choices_written(chunk, self.model, self.tier)

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
            self._opening = None  # no text may follow
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
        """Read the final usage, which the bill uses."""
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
