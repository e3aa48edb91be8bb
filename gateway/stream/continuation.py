"""How a stream that gave way goes on as another request: from its own text so far, so that its caller sees a
pause and one stream. Pure.

Only what a text can carry goes on: one sample of plain text on chat or completions. Tool calls, log
probabilities, constrained output and penalties on what was said have state inside the engine that a text does
not have. vLLM continues a final assistant message with `continue_final_message`.

What the engine had produced and its caller was not given (a character of which half the bytes were there,
what might have become a stop string) is produced again: it counts towards no limit of the request, and nobody
pays for it twice.
"""

from dataclasses import replace
from typing import Any, Final

import orjson

from gateway.request import AnswerForm, ParsedRequest, RouteSpec

# Of these 0 is none.
_PENALTIES_ON_OUTPUT: Final = ("frequency_penalty", "presence_penalty")
_DATA: Final = b"data: "


def can_go_on(parsed: ParsedRequest) -> bool:
    """Whether this request could be stopped in mid-stream and go on elsewhere."""
    if (
        not parsed.stream
        or parsed.samples != 1
        or parsed.wants_continuous_usage
        or parsed.max_output_tokens is None
    ):
        return False
    body = parsed.body
    if not parsed.route.continued:
        return False
    if not all(name in parsed.route.continued or _is_none(name, value) for name, value in body.items()):
        return False
    if body.get("stop") and body.get("include_stop_str_in_output"):
        # nothing is held back: its caller may have the beginning of a stop string, and no engine sees the
        # whole of it
        return False
    if parsed.route.answer is AnswerForm.CHAT:
        last = body["messages"][-1]
        goes_on_already = body.get("continue_final_message") is True and isinstance(last.get("content"), str)
        return bool(last["role"] != "assistant") or goes_on_already
    return isinstance(body["prompt"], str)


def _is_none(name: str, value: Any) -> bool:
    """Whether that is as good as not said. 0 log probabilities are those of what was said, and asked for."""
    return value is None or value is False or value == [] or (name in _PENALTIES_ON_OUTPUT and value == 0)


class Given:
    """What the caller of one part has been given. `counts`: the output tokens that the engine had counted
    at each of these events.
    """

    __slots__ = ("_end", "_pieces", "counts")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._end: tuple[int, int] | None = None
        self.counts: list[int] = []

    @property
    def begun(self) -> bool:
        return bool(self._pieces)

    def add(self, passed: bytes) -> None:
        """Whole events, as the meter passed them."""
        if passed:
            self._pieces.append(passed)

    def close(self, parsed: ParsedRequest, chunk: dict[str, Any], output_tokens: int) -> bytes:
        """The chunk that said it was stopped, as the caller is to have it: with the text that came with it
        (what the engine had held back, too), but for what may have become a stop string: no engine would see
        the whole of that. An empty one is none. Raises ValueError as `text_and_tokens`.
        """
        so_far, _ = self.text_and_tokens(parsed)
        choice = chunk["choices"][0]
        where, name = (
            (choice, "text") if parsed.route.answer is AnswerForm.COMPLETION else (choice["delta"], "content")
        )
        came = where.get(name) or ""
        if not came:
            return b""
        self._end = len(so_far) + len(came), output_tokens
        said = came
        if begun := _stop_begun_chars(so_far + came, _stops(parsed)):
            said = _whole_words(came, max(0, len(came) - begun))
        if not said:
            return b""
        where[name] = said
        choice["finish_reason"] = choice["stop_reason"] = None
        chunk.pop("usage", None)
        event = _DATA + orjson.dumps(chunk) + b"\n\n"
        self._pieces.append(event)
        self.counts.append(output_tokens)
        return event

    def text_and_tokens(self, parsed: ParsedRequest) -> tuple[str, int]:
        """The text so far, and how many tokens carry it. Reasoning and calls, which a text does not carry,
        raise ValueError.
        """
        pieces, chars = [], 0
        held_back = max(map(len, _stops(parsed)), default=1) - 1
        marks = [(0, 0)]
        for event, count in zip(b"".join(self._pieces).split(b"\n\n")[:-1], self.counts, strict=True):
            if event.startswith(b"data: {") and (said := _said(parsed.route, event)):
                pieces.append(said)
                chars += len(said)
                # the engine shows a token's text so many characters late
                marks.append((chars + held_back, count))
        if self._end is not None:  # from here on nothing was held back
            marks = [mark for mark in marks if mark[0] < self._end[0]]
            marks.append(self._end)
        return "".join(pieces), _tokens_of(chars, marks)


def _tokens_of(chars: int, marks: list[tuple[int, int]]) -> int:
    """How many tokens the first `chars` characters are, by marks (characters, tokens) that rise; between
    two marks in proportion.
    """
    below = max(mark for mark in marks if mark[0] <= chars)
    above = min((mark for mark in marks if mark[0] > chars), default=below)
    return below[1] + (above[1] - below[1]) * (chars - below[0]) // max(1, above[0] - below[0])


def _said(route: RouteSpec, event: bytes) -> str:
    pieces, plain = [], route.answer is AnswerForm.COMPLETION
    for choice in orjson.loads(event[len(_DATA) :])["choices"]:
        said = choice if plain else choice["delta"]
        if any(said.get(name) for name in ("reasoning", "reasoning_content", "tool_calls")):
            raise ValueError("more than text")
        pieces.append(said.get("text" if plain else "content") or "")
    return "".join(pieces)


def _stops(parsed: ParsedRequest) -> list[str]:
    """vLLM holds back one character less than the longest of them: none begins in what it shows and ends
    behind it.
    """
    stop = parsed.body.get("stop") or []
    return [stop] if isinstance(stop, str) else stop


def _whole_words(text: str, end: int) -> str:
    """What ends at or before `end` with a word, where there is one: a blank belongs to the token behind
    it, and half a word is no token.
    """
    blanks = [at for at in range(min(end + 1, len(text))) if text[at].isspace()]
    return text[: blanks[-1] if blanks else end].rstrip()


def _stop_begun_chars(text: str, stops: list[str]) -> int:
    """How much at the end of this text a stop string may have begun with."""
    begun = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return max(begun, default=0)


def going_on(parsed: ParsedRequest, text: str, output_tokens: int) -> ParsedRequest:
    """The same request from where its text, of so many tokens, has come to. Raises ValueError when there
    is nothing left to say.
    """
    assert parsed.max_output_tokens is not None
    left = parsed.max_output_tokens - output_tokens
    if left < 1:
        raise ValueError("no tokens left")
    if not text:
        return parsed
    body: dict[str, Any] = dict(parsed.body)
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
    )


class Splice:
    """Makes the chunks of a later part look like those of the first: its id, no second opening, usage of the
    whole.

    `output`: tokens of the text before it. `prompt`, `cached`: as the part said that read the prompt first;
    None where this is the one.
    """

    __slots__ = ("_cached", "_first_id", "_own_id", "_prompt", "opened", "output")

    def __init__(
        self, own_id: str, first_id: str, *, opened: bool, prompt: int | None, cached: int, output: int
    ) -> None:
        self._own_id, self._first_id = own_id.encode(), first_id.encode()
        self.opened = opened
        self._prompt, self._cached, self.output = prompt, cached, output

    def told(self, passed: bytes) -> bytes:
        """Whole events as the caller is to have them."""
        events = [self._told(event) for event in passed.split(b"\n\n")[:-1]]
        kept = [event for event in events if event is not None]
        return b"".join([event + b"\n\n" for event in kept])

    def _told(self, event: bytes) -> bytes | None:
        if not event.startswith(b"data: {"):
            return event
        # The first occurrence is the chunk's own id: it stands before anything that was generated.
        event = event.replace(self._own_id, self._first_id, 1)
        if self.opened and b'"role":"assistant"' in event and b'"content":""' in event:
            return None
        if b'"choices":[]' not in event:
            return event
        chunk = orjson.loads(event[len(_DATA) :])
        usage = chunk.get("usage")
        if isinstance(usage, dict) and self._prompt is not None:
            usage["prompt_tokens"] = self._prompt
            usage["completion_tokens"] += self.output
            usage["total_tokens"] = self._prompt + usage["completion_tokens"]
            if isinstance(usage.get("prompt_tokens_details"), dict):
                usage["prompt_tokens_details"]["cached_tokens"] = self._cached
        return _DATA + orjson.dumps(chunk)
