"""Parses bytes to one JSON object that every parser reads alike, or raises `InvalidJson`. It knows JSON, no
routes and no parameters.

It refuses anything but UTF-8 without a byte order mark, lone surrogates, NaN and infinities (1e999 too),
duplicate keys at any depth (two parsers may disagree on which one counts), deep nesting, and bodies of more
pieces than an honest request has: those cost far more memory and time than their bytes. Checking 4 MB takes
less than 50 ms of CPU, because pieces are counted before anything is built.
"""

from typing import Any

import orjson

from gateway.errors import InvalidJson

DEPTH_MAX = 64
KEYS_MAX = 20_000
CONTAINERS_MAX = 20_000
STRINGS_MAX = 60_000
# A prompt of token ids has one value per token.
VALUES_MAX = 300_000
# With fewer marks than this, inside strings or not, no count can reach a cap; the exact count is only taken
# above it.
MARKS_UNCOUNTED_MAX = 20_000
MARKS = b",:[{"
STRINGS_SEARCHED_MAX = 256
NAME_BYTES_MAX = 64


def load_object(raw: bytes) -> dict[str, Any]:
    """The object in `raw`. Raises InvalidJson; it never returns a value in which a duplicate key has hidden
    another.
    """
    if len(raw) - len(raw.translate(None, MARKS)) > MARKS_UNCOUNTED_MAX:
        _count_pieces(raw)
    try:
        value = orjson.loads(raw)
    except (orjson.JSONDecodeError, RecursionError) as exc:
        raise InvalidJson(f"The request body is not valid JSON: {_reason(exc)}.") from None
    if type(value) is not dict:
        raise InvalidJson("The request body must be a JSON object.")
    # Every key has one colon outside strings. If a duplicate key replaced a value, the value has fewer keys
    # than the text has colons.
    colons = raw.count(b":")
    if raw.find(b"\\u003") >= 0:
        escapes = raw.replace(b"\\\\", b"")
        colons += escapes.count(b"\\u003a") + escapes.count(b"\\u003A")
    if _keys_and_colons(value, 1) != colons:
        raise InvalidJson("The request body has a duplicate key.")
    return value


def _count_pieces(raw: bytes) -> None:
    """Count what would be built, outside strings. Exact for valid JSON up to its first error, and nothing
    is built after that.
    """
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * STRINGS_MAX:
        raise _too_many("strings", plain)
    bare = b"".join(plain.split(b'"')[::2])
    if bare.count(b":") > KEYS_MAX:
        raise _too_many("keys", plain)
    if bare.count(b"[") + bare.count(b"{") > CONTAINERS_MAX:
        raise _too_many("objects and arrays", plain)
    if bare.count(b",") > VALUES_MAX:
        raise _too_many("values", plain)


def _keys_and_colons(value: Any, depth: int) -> int:
    if depth > DEPTH_MAX:
        raise InvalidJson(f"The request body is nested more than {DEPTH_MAX} deep.")
    total = 0
    if type(value) is dict:
        total = len(value)
        for key, member in value.items():
            if ":" in key:
                total += key.count(":")
            kind = type(member)
            if kind is str:
                total += member.count(":")
            elif kind is dict or kind is list:
                total += _keys_and_colons(member, depth + 1)
        return total
    for member in value:
        kind = type(member)
        if kind is str:
            total += member.count(":")
        elif kind is dict or kind is list:
            total += _keys_and_colons(member, depth + 1)
    return total


def _too_many(what: str, plain: bytes) -> InvalidJson:
    """Names the top-level member at which the body's first strings end: an overlong list or object usually
    begins there.
    """
    pieces = plain.split(b'"', 2 * STRINGS_SEARCHED_MAX)
    depth = 0
    param = None
    for before, text, after in zip(pieces[::2], pieces[1::2], pieces[2::2], strict=False):
        depth += before.count(b"[") + before.count(b"{") - before.count(b"]") - before.count(b"}")
        if depth == 1 and after.lstrip().startswith(b":"):
            param = text[:NAME_BYTES_MAX].decode(errors="replace")
            if len(after) > STRINGS_SEARCHED_MAX * NAME_BYTES_MAX:
                break
    return InvalidJson(f"The request body has too many {what}{f' in {param!r}' if param else ''}.", param)


def _reason(exc: Exception) -> str:
    """orjson's own text without a quote of the body; it holds a position, never content."""
    return str(exc).partition(": line ")[0]
