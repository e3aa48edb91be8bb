"""Splits the input of a batch into its lines while it is read: JSONL (OpenAI), or the elements of the array
`requests` (Anthropic). It holds one line at a time, and not even that if the line is too long. Pure.

It knows where lines begin and end, not what they say.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_IN_OBJECT: Final = re.compile(rb'["{}]')
_IN_STRING: Final = re.compile(rb'["\\]')
_HEAD: Final = b'{"requests":['
_TAIL: Final = b"]}"


@dataclass(frozen=True, slots=True)
class RawLine:
    """`number`: which line of the file it is, from 1. `text` is None if it is longer than it may be."""

    number: int
    start: int
    length: int
    text: bytes | None


class NotRequests(ValueError):
    """The body is not `{"requests": [{…}, …]}`."""


def split_jsonl(pieces: Iterable[bytes], bytes_max: int) -> Iterator[RawLine]:
    """The lines that are not blank."""
    kept, length, start, number = bytearray(), 0, 0, 1
    for piece in pieces:
        begin = 0
        while (end := piece.find(b"\n", begin)) >= 0:
            yield from _line(number, start, length + end - begin, kept + piece[begin:end], bytes_max)
            start += length + end - begin + 1
            kept, length, number, begin = bytearray(), 0, number + 1, end + 1
        length += len(piece) - begin
        if length <= bytes_max:
            kept += piece[begin:]
        else:
            kept.clear()
    yield from _line(number, start, length, kept, bytes_max)


def _line(number: int, start: int, length: int, text: bytearray, bytes_max: int) -> Iterator[RawLine]:
    if length > bytes_max:
        yield RawLine(number, start, length, None)
    elif text.strip():
        yield RawLine(number, start, length, bytes(text))


def split_requests(pieces: Iterable[bytes], bytes_max: int) -> Iterator[RawLine]:
    """The elements, which must be objects. Raises NotRequests if there is anything but them and commas."""
    outside, kept = bytearray(), bytearray()
    number = length = depth = offset = start = skipped = 0
    in_string = False
    for piece in pieces:
        at, begin, skipped = skipped, 0, 0
        while at < len(piece):
            if not depth:
                at = _SPACE.match(piece, at).end()  # type: ignore[union-attr] # it matches nothing, too
                mark = piece[at : at + 1]
                if mark == b"{" and bytes(outside) == (b"," if number else _HEAD):
                    number, depth, length, start, begin = number + 1, 1, 0, offset + at, at
                    outside.clear()
                    kept.clear()
                else:
                    outside += mark
                    if len(outside) > len(_HEAD + _TAIL):
                        raise NotRequests
                at += 1
                continue
            found = (_IN_STRING if in_string else _IN_OBJECT).search(piece, at)
            if found is None:
                break
            at, mark = found.end(), found[0]
            if mark == b"\\":
                at += 1  # the byte after it, which may be in the next piece
            elif mark == b'"':
                in_string = not in_string
            else:
                depth += 1 if mark == b"{" else -1
            if not depth:
                length += at - begin
                if length <= bytes_max:
                    kept += piece[begin:at]
                yield RawLine(number, start, length, bytes(kept) if length <= bytes_max else None)
        if depth:
            skipped = max(0, at - len(piece))
            length += len(piece) - begin
            if length <= bytes_max:
                kept += piece[begin:]
        offset += len(piece)
    if depth or outside != (_TAIL if number else _HEAD + _TAIL):
        raise NotRequests
