"""Writes the tier that was used into answers and chunks. Pure: it takes bytes that a meter has read and returns bytes to pass on.

Content is never searched for a place to write: a member is put in front of all others of the outermost object, which cannot be inside anything,
or an object that is decoded already is written out again. An engine that says a tier of its own has it replaced: it knows no contracts.
"""

from typing import Any

import orjson

from gateway.meter import ProtocolViolation
from gateway.protocol.tier import anthropic_tier
from gateway.request import Route

_NAME = "service_tier"
# In JSON a quote inside a string is escaped, so a member of this name has these bytes; a string with just this text has them too, which only costs time.
_NAME_BYTES = b'"service_tier"'
_DATA = b"data: "
_CHUNK_OPENING = b'data: {"'
_CHUNK_OPENING_TOLD = {tier: b'data: {"service_tier":"%b","' % tier for tier in (b"priority", b"default", b"flex")}


def chunk_told(event: bytes, tier: bytes) -> bytes:
    """An event of a chat or completions stream with its tier; a comment stays as it is. Raises ProtocolViolation where it is not JSON."""
    if event.startswith(_CHUNK_OPENING) and _NAME_BYTES not in event:
        return _CHUNK_OPENING_TOLD[tier] + event[len(_CHUNK_OPENING) :]
    if not event.startswith(_DATA):
        return event
    try:
        chunk: dict[str, Any] = orjson.loads(event[len(_DATA) :])
    except orjson.JSONDecodeError as exc:
        raise ProtocolViolation("chunk is not JSON") from exc
    return _DATA + (told_in(chunk, chunk, tier.decode()) or event[len(_DATA) :])


def whole_told(answer: bytes, decoded: dict[str, Any], route: Route, tier: bytes) -> bytes:
    """A whole answer with its tier, where its dialect says it: in `usage` on messages, beside it everywhere else. `decoded` is used up."""
    if route is Route.MESSAGES:
        usage = decoded.get("usage")
        return answer if not isinstance(usage, dict) else told_in(decoded, usage, anthropic_tier(tier)) or answer
    if _NAME not in decoded and answer.startswith(b'{"'):  # embeddings: many numbers, not to be written again
        return b'{"service_tier":"%b",%b' % (tier, answer[1:])
    return told_in(decoded, decoded, tier.decode()) or answer


def told_in(outermost: dict[str, Any], holder: dict[str, Any], word: str) -> bytes | None:
    """`outermost` as JSON, once `holder`, somewhere in it, says the tier. None when it is nested deeper than can be written."""
    holder[_NAME] = word
    try:
        return orjson.dumps(outermost)
    except orjson.JSONEncodeError:
        return None
