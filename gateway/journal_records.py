"""The text of a journal: one line a record, `length crc32 JSON`, so that a torn or damaged line is told from a whole one. Pure.

A record is a settle's arguments without the script's SHA: a gateway of a later version sends it through its own script.
"""

import zlib
from dataclasses import dataclass

import orjson

from billing.cell.scripts import Command, script


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a journal holds: its commands in order, the bytes up to the end of the last whole record, and damaged lines before that."""

    commands: tuple[Command, ...]
    valid_bytes: int
    damaged: tuple[bytes, ...]


def encode(call: Command) -> bytes:
    """A settle call as a line."""
    text = orjson.dumps([part.decode() if isinstance(part, bytes) else part for part in call[2:]])
    return b"%d %08x %b\n" % (len(text), zlib.crc32(text), text)


def recover(journal: bytes) -> Recovered:
    """Read a journal, whatever state a crash has left it in."""
    commands: list[Command] = []
    damaged: list[bytes] = []
    suspects: list[bytes] = []
    valid_bytes = position = 0
    while (end := journal.find(b"\n", position)) >= 0:
        line = journal[position:end]
        position = end + 1
        text = _text_of(line)
        if text is None:
            suspects.append(line)
            continue
        commands.append(("EVALSHA", script("settle").sha, *orjson.loads(text)))
        damaged += suspects
        suspects.clear()
        valid_bytes = position
    return Recovered(tuple(commands), valid_bytes, tuple(damaged))


def _text_of(line: bytes) -> bytes | None:
    length, _, rest = line.partition(b" ")
    checksum, _, text = rest.partition(b" ")
    if b"%d" % len(text) != length or b"%08x" % zlib.crc32(text) != checksum:
        return None
    return text
