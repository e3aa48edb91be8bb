"""Reads a chunk in mid-stream of a single sample, as vLLM writes it, without decoding it: one piece of text
and the usage so far. Pure.

Such chunks of one stream differ in their text and figures alone. So a chunk with one token more than the one
before is compared with what it must be; any other is read by one regular expression. The text is passed on as
it is.
"""

import re
from typing import NamedTuple

import orjson

# A text that is not empty, inside its quotes. No byte of it can end an event.
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]++')
_TEXT = rb'(?P<text>(?!")[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+)'
# A chunk after its opening. Of its members that are null `kept` has those that the vendors send, too. Figures
# of more digits are not read here, and refused when they are decoded.
_MID_STREAM = re.compile(
    rb'(?P<kept>\{"index":0,(?:"text":"|(?P<delta>"delta":\{)(?:"(?:content|reasoning|reasoning_content)":"'
    rb'|(?P<call>"tool_calls":\[\{"index":\d+,"function":\{"arguments":")))' + _TEXT + rb'"'
    rb'(?(call)\}\}\])(?(delta)\}),(?:"logprobs":null,)?"finish_reason":null)'
    rb'(?:,"(?:stop_reason|prompt_token_ids|token_ids)":null)*+\}\]'
    rb'(?:,"usage":\{"prompt_tokens":(?P<prompt>\d{1,9}),"total_tokens":(?P<total>\d{1,10}),'
    rb'"completion_tokens":(?P<output>\d{1,9})(?:,[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+)?\})?\}'
)
_END = b"}]}\n\n"
_CHUNK = b'data: {"'
_MODEL = b',"model":"'
_CHOICES = b',"choices":['
# No caller gets these as the engine writes them.
_NOT_PASSED_ON = (b'"service_tier"', b'"usage"', b'":null')


class Piece(NamedTuple):
    """What a chunk has: the event to pass on, with its blank line, and the figures that it reports. `output`
    None: none.
    """

    passed_on: bytes
    prompt: int
    output: int | None


class MidStream:
    """What is known of the chunks of one stream. Before `learn` it reads none."""

    __slots__ = (
        "_head", "_head_written", "_opening", "_opening_written", "_prompt", "_tail", "_tail_written",
    )  # fmt: skip

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """No more of them may come."""
        self._opening: bytes | None = None
        self._tail: bytes | None = None
        self._head = self._opening_written = self._head_written = self._tail_written = b""
        self._prompt = 0

    def learn(self, event: bytes, model: str | None, tier: bytes | None) -> None:
        """Learn the bytes before the choices, if the model is the last member there: nothing in them was
        generated. `model`, `tier`: what the caller gets in their place.
        """
        if self._opening is not None and event.startswith(self._opening):
            return
        model_at, choices_at = event.find(_MODEL), event.find(_CHOICES)
        one_member = 0 <= model_at < choices_at and event.count(b'":', model_at, choices_at) == 1
        opening = event[: choices_at + len(_CHOICES)]
        if not one_member or not event.startswith(_CHUNK) or any(name in opening for name in _NOT_PASSED_ON):
            return
        self._opening, self._tail = opening, None
        self._opening_written = b"data: {%b%b%b%b" % (
            b"" if tier is None else b'"service_tier":"%b",' % tier,
            event[len(_CHUNK) - 1 : model_at],
            event[model_at:choices_at] if model is None else b',"model":' + orjson.dumps(model),
            _CHOICES,
        )

    def next_token(self, event: bytes, prompt: int, output: int) -> bytes | None:
        """What to pass on of an event, with its blank line, that is like the last one but for its text and
        these figures. None if it is not.
        """
        if self._tail is None or prompt != self._prompt:
            return None
        tail = self._tail % (prompt + output, output)
        start, end = len(self._head), len(event) - len(tail)
        if event.startswith(self._head) and event.endswith(tail) and _PLAIN.fullmatch(event, start, end):
            return b"%b%b%b" % (self._head_written, event[start:end], self._tail_written)
        return None

    def read(self, event: bytes) -> Piece | None:
        """Read an event, without its blank line. None: it has to be decoded."""
        if self._opening is None or not event.startswith(self._opening):
            return None
        found = _MID_STREAM.fullmatch(event, len(self._opening))
        if found is None:
            return None
        passed_on = b"%b%b%b" % (self._opening_written, found["kept"], _END)
        if found["output"] is None:
            return Piece(passed_on, 0, None)
        prompt, output = int(found["prompt"]), int(found["output"])
        if self._tail is None or prompt != self._prompt or not event.startswith(self._head):
            self._learn_tail(event, found, prompt, output)
        return Piece(passed_on, prompt, output)

    def _learn_tail(self, event: bytes, found: "re.Match[bytes]", prompt: int, output: int) -> None:
        self._tail, self._prompt = None, prompt
        if int(found["total"]) != prompt + output:
            return
        text_at, text_end = found.span("text")
        self._head = event[:text_at]
        self._head_written = self._opening_written + event[found.start("kept") : text_at]
        self._tail_written = event[text_end : found.end("kept")] + _END
        around = (
            event[text_end : found.start("total")],
            event[found.end("total") : found.start("output")],
            event[found.end("output") :] + b"\n\n",
        )
        self._tail = b"%d".join(part.replace(b"%", b"%%") for part in around)
