"""How a stream that was preempted, or whose engine failed, is resumed: as a new engine request that continues
the text so far. The caller sees one stream with a pause. Pure.

Only plain text can be resumed: one sample on chat or completions. Tool calls, log probabilities, constrained
output, penalties on earlier output and a seed's random numbers depend on state inside the engine that the
text does not carry. vLLM continues a final assistant message with `continue_final_message`.

Some output that the engine produced never reached the caller: the first bytes of a character, or text that
might be the beginning of a stop string. The resumed part produces it again. It counts towards no limit of the
request, and nobody pays for it twice.

A caller's text may end inside a token, where a model would go on otherwise than it was about to (`she wa`,
`ges a war`). So the resumed part continues the text up to the end of an earlier token, and is made to begin
with the rest of what the caller has, which the caller does not get again.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson
from msgspec.structs import replace

from gateway.request import AnswerForm, ParsedRequest, RouteSpec
from gateway.stream.meter import ProtocolViolation
from gateway.stream.meter_choices import decoded_chunk

# For these fields 0 means the same as leaving them out.
_PENALTIES_ON_OUTPUT: Final = ("frequency_penalty", "presence_penalty")
_DATA: Final = b"data: "
# So many ends of tokens before the last one are remembered, since a text is not continued after a blank.
_ENDS_KEPT: Final = 8


def can_resume(parsed: ParsedRequest) -> bool:
    """Whether this request can be stopped in mid-stream and resumed on another instance."""
    if not parsed.stream or parsed.samples != 1 or parsed.wants_continuous_usage:
        return False
    body, continued = parsed.body, parsed.route.continued
    if not continued:
        return False
    for name, value in body.items():
        if name not in continued and not _has_no_effect(name, value, body):
            return False
    if body.get("stop") and body.get("include_stop_str_in_output"):
        # The engine holds nothing back: the caller may have the beginning of a stop string already, and the
        # next engine would not recognise its rest.
        return False
    if parsed.route.answer is AnswerForm.CHAT:
        last = body["messages"][-1]
        if last["role"] != "assistant":
            return True
        return body.get("continue_final_message") is True and isinstance(last.get("content"), str)
    return isinstance(body["prompt"], str)


def _has_no_effect(name: str, value: Any, body: Mapping[str, Any]) -> bool:
    """Whether the value means the same as leaving the field out. `logprobs: 0` does not: it asks for the log
    probabilities of the chosen tokens. A seed has no effect where nothing is drawn.
    """
    if value is None or value is False or value == []:
        return True
    if name == "seed":
        return body.get("temperature") == 0
    return name in _PENALTIES_ON_OUTPUT and bool(value == 0)


class Carried(NamedTuple):
    """Of a part's text: what the next part continues, how many tokens that is, and what the caller has
    beyond it.
    """

    text: str
    tokens: int
    rest: str


class DeliveredEvents:
    """The events of one part that the caller has received. `counts`: the engine's output token count at each
    of these events; a meter appends to it.

    Events are kept as bytes, which costs nearly nothing, until `fold` makes text of them.
    """

    __slots__ = ("_chars", "_end", "_marks", "_more_than_text", "_pieces", "_texts", "counts", "started")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._texts: list[str] = []
        self._chars = 0
        self._marks = [(0, 0)]
        self._end: tuple[int, int] | None = None
        self._more_than_text = False
        self.counts: list[int] = []
        self.started = False

    def add(self, passed: bytes) -> bytes:
        """Add complete events, as the meter passed them on. Returns them."""
        if passed:
            self._pieces.append(passed)
        return passed

    def fold(self, parsed: ParsedRequest) -> None:
        """Make text of the events so far: a fiftieth of their size."""
        if not self._pieces:
            return
        self.started = True
        events = b"".join(self._pieces).split(b"\n\n")[:-1]
        held_back = max(map(len, _stops(parsed)), default=1) - 1
        for event, count in zip(events, self.counts, strict=True):
            if event.startswith(b"data: {") and (said := self._said(parsed.route, event)):
                self._texts.append(said)
                self._chars += len(said)
                # the engine emits a token's text with a delay of this many characters
                self._marks.append((self._chars + held_back, count))
        self._pieces.clear()
        self.counts.clear()
        below = sum(mark[0] <= self._chars for mark in self._marks)
        del self._marks[: max(0, below - _ENDS_KEPT)]

    def close(self, parsed: ParsedRequest, chunk: dict[str, Any], output_tokens: int) -> bytes:
        """Turn the engine's last chunk, which says that it was aborted, into an ordinary chunk for the
        caller; empty bytes if it carries no text.

        It keeps the text that came with the abort (the engine also flushes what it held back), except for a
        possible beginning of a stop string: the next engine must see a stop string from its start. Raises
        ValueError as `carried` does.
        """
        so_far = self._text(parsed)
        choice = chunk["choices"][0]
        where, name = _place_of_text(choice)
        came = where.get(name) or ""
        if not came:
            return b""
        self._end = len(so_far) + len(came), output_tokens
        said = came[: max(0, len(came) - _partial_stop_chars(so_far + came, _stops(parsed)))]
        if not said:
            return b""
        where[name] = said
        choice["finish_reason"] = choice["stop_reason"] = None
        chunk.pop("usage", None)
        event = _DATA + orjson.dumps(chunk) + b"\n\n"
        self._pieces.append(event)
        self.counts.append(output_tokens)
        return event

    def carried(self, parsed: ParsedRequest) -> "Carried":
        """What of the text the next part continues. Raises ValueError for reasoning and tool calls: a text
        does not carry them.
        """
        text, marks = self._text(parsed), self._marks
        if self._end is not None:  # the closing chunk held nothing back
            marks = [mark for mark in marks if mark[0] < self._end[0]]
            marks.append(self._end)
        ends = [mark for mark in marks if mark[0] <= self._chars]
        # A blank and the word after it are often one token.
        apart = [(at, tokens) for at, tokens in ends if not text[:at][-1:].isspace()]
        at, tokens = (apart or ends)[-1]
        return Carried(text[:at], tokens, text[at:])

    def _text(self, parsed: ParsedRequest) -> str:
        self.fold(parsed)
        if self._more_than_text:
            raise ValueError("more than text")
        return "".join(self._texts)

    def _said(self, route: RouteSpec, event: bytes) -> str:
        pieces, plain = [], route.answer is AnswerForm.COMPLETION
        try:
            chunk = decoded_chunk(event)
        except ProtocolViolation:  # a text in mid-stream is passed on unread: this one is no UTF-8
            self._more_than_text = True
            return ""
        for choice in chunk["choices"]:
            said = choice if plain else choice["delta"]
            if any(said.get(name) for name in ("reasoning", "reasoning_content", "tool_calls")):
                self._more_than_text = True
            pieces.append(said.get("text" if plain else "content") or "")
        return "".join(pieces)


def _stops(parsed: ParsedRequest) -> list[str]:
    """The request's stop strings. vLLM holds back one character less than the longest, so that no stop string
    begins in text that was already sent.
    """
    stop = parsed.body.get("stop") or []
    return [stop] if isinstance(stop, str) else stop


def _partial_stop_chars(text: str, stops: list[str]) -> int:
    """How many characters at the end of this text may be the beginning of a stop string."""
    partial = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return max(partial, default=0)


def remaining_request(parsed: ParsedRequest, carried: Carried, default_max_tokens: int) -> ParsedRequest:
    """The request that continues after what is carried. Raises ValueError when no tokens are left to
    produce.
    """
    text, output_tokens, rest = carried
    left = (parsed.max_output_tokens or default_max_tokens) - output_tokens
    if left < 1:
        raise ValueError("no tokens left")
    if not text:
        return replace(parsed, begins_with=rest)
    body: dict[str, Any] = dict(parsed.body)
    if parsed.max_output_tokens is None:
        body[parsed.route.output_params[0]] = left
    for name in parsed.route.output_params:
        if body.get(name) is not None:
            body[name] = left
    if body.get("min_tokens"):
        body["min_tokens"] = max(0, body["min_tokens"] - output_tokens)
    if parsed.route.answer is AnswerForm.CHAT:
        before, last = body["messages"][:-1], body["messages"][-1]
        if last["role"] == "assistant":
            body["messages"] = [*before, last | {"content": last["content"] + text}]
        else:
            body["messages"] = [*before, last, {"role": "assistant", "content": text}]
        body["continue_final_message"], body["add_generation_prompt"] = True, False
    else:
        body["prompt"] += text
    return replace(
        parsed,
        body=body,
        max_output_tokens=left,
        input_tokens_estimate=parsed.input_tokens_estimate + output_tokens,
        begins_with=rest,
    )


class Splice:
    """Rewrites the chunks of a resumed part so that they continue the first part's stream: the first part's
    id, no second opening chunk, usage of the whole request, no text twice.

    `output`: tokens of the text before this part. `prompt`, `cached`: usage of the part that read the prompt
    first; None if this part is the one. `repeated`: text that the caller has already, with which this part
    begins; less what has come of it.
    """

    __slots__ = ("_cached", "_first_id", "_own_id", "_prompt", "opened", "output", "repeated")

    def __init__(
        self,
        own_id: str,
        first_id: str,
        *,
        opened: bool,
        prompt: int | None,
        cached: int,
        output: int,
        repeated: str,
    ) -> None:
        self._own_id, self._first_id = own_id.encode(), first_id.encode()
        self.opened = opened
        self._prompt, self._cached, self.output = prompt, cached, output
        self.repeated = repeated

    def rewrite(self, passed: bytes) -> bytes:
        """Rewrite complete events for the caller. Raises ProtocolViolation if this part does not begin as it
        was told to.
        """
        events = [self._rewrite_event(event) for event in passed.split(b"\n\n")[:-1]]
        kept = [event for event in events if event is not None]
        return b"".join([event + b"\n\n" for event in kept])

    def _rewrite_event(self, event: bytes) -> bytes | None:
        if not event.startswith(b"data: {"):
            return event
        # The first occurrence is the chunk's own id: the id comes before any generated text.
        event = event.replace(self._own_id, self._first_id, 1)
        if self.opened and b'"role":"assistant"' in event and b'"content":""' in event:
            return None
        if b'"choices":[]' not in event:
            return self._without_repeated(event) if self.repeated else event
        chunk = decoded_chunk(event)
        usage = chunk.get("usage")
        if isinstance(usage, dict) and self._prompt is not None:
            usage["prompt_tokens"] = self._prompt
            usage["completion_tokens"] += self.output
            usage["total_tokens"] = self._prompt + usage["completion_tokens"]
            if isinstance(usage.get("prompt_tokens_details"), dict):
                usage["prompt_tokens_details"] = {"cached_tokens": self._cached}
        return _DATA + orjson.dumps(chunk)

    def _without_repeated(self, event: bytes) -> bytes | None:
        chunk = decoded_chunk(event)
        choice = chunk["choices"][0]
        where, name = _place_of_text(choice)
        said = where.get(name) or ""
        if not (self.repeated.startswith(said) or said.startswith(self.repeated)):
            raise ProtocolViolation("another beginning than it was told")
        where[name], self.repeated = said[len(self.repeated) :], self.repeated[len(said) :]
        if not where[name] and choice.get("finish_reason") is None:
            return None
        return _DATA + orjson.dumps(chunk)


def _place_of_text(choice: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The object that has the text of a chunk's choice, and its member."""
    return (choice["delta"], "content") if "delta" in choice else (choice, "text")
