"""The text of a journal: one line per record, `length crc32 JSON`, so that a torn or damaged line is
recognised. Pure.

A record is a script's name, its keys and its arguments; a gateway of a later version sends it through its own
script. Or it is the admission of a request while Redis was away: a command that reserves it, for the process
that serves it, and one that settles it, for the process that adopts the file of a dead one.
"""

import zlib
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from billing.cell.scripts import CellKeys, Command, call, leave_call, script_of, settle_call
from billing.wire.usage_event import UsageEvent


@dataclass(frozen=True, slots=True)
class Admission:
    """A request admitted without Redis. `reserve`: the command that makes its reservation. `died`: the
    command that settles it if its gateway has died.
    """

    reserve: Command
    died: Command


Record: TypeAlias = Command | Admission


@dataclass(frozen=True, slots=True)
class Recovered:
    """The content of a journal: its commands in order, the bytes up to the end of the last complete record,
    and damaged lines before that. `died`: commands that settle the requests that a dead process had admitted.
    They are sent last, because a settle of such a request counts more.
    """

    commands: tuple[Command, ...]
    died: tuple[Command, ...]
    valid_bytes: int
    damaged: tuple[bytes, ...]


def encode(record: Record) -> bytes:
    """A record as a line."""
    text = orjson.dumps(
        {"reserve": _named(record.reserve), "died": _named(record.died)}
        if isinstance(record, Admission)
        else _named(record)
    )
    return b"%d %08x %b\n" % (len(text), zlib.crc32(text), text)


def command_of(record: Record) -> Command:
    """The command that the process that wrote the record would send."""
    return record.reserve if isinstance(record, Admission) else record


def recover(journal: bytes, *, own: bool) -> Recovered:
    """Read a journal, in whatever state a crash has left it. `own`: the process that wrote it lives, and
    continues with the requests that it admitted.
    """
    commands: list[Command] = []
    died: list[Command] = []
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
        record = orjson.loads(text)
        if isinstance(record, list):
            commands.append(_command(record))
        elif own:
            commands.append(_command(record["reserve"]))
        else:
            died.append(_command(record["died"]))
        damaged += suspects
        suspects.clear()
        valid_bytes = position
    return Recovered(tuple(commands), tuple(died), valid_bytes, tuple(damaged))


def _named(command: Command) -> list[Any]:
    _, function, count, *words = command
    texts = [part.decode() if isinstance(part, bytes) else part for part in words]
    return [script_of(str(function)), texts[: int(count)], *texts[int(count) :]]


def _command(record: list[Any]) -> Command:
    if isinstance(record[0], str):
        name, keys, *arguments = record
        return call(name, keys, *arguments)
    # The form of an earlier version: five keys, then what to do and for whom, all in one script's arguments.
    _, _, tenant_bucket, key_bucket, open_requests, _, verb, request_id, flag, *rest = record
    cell_keys = CellKeys(request_id, open_requests, tenant_bucket, key_bucket)
    if verb == "leave":
        return leave_call(cell_keys, refused=bool(flag))
    tokens = UsageEvent.from_json(rest[5]).charged_tokens
    return settle_call(
        cell_keys, cost_mu=rest[0], tokens=tokens, event=rest[5].encode(), cancelled=bool(rest[9])
    )


def _text_of(line: bytes) -> bytes | None:
    length, _, rest = line.partition(b" ")
    checksum, _, text = rest.partition(b" ")
    if b"%d" % len(text) != length or b"%08x" % zlib.crc32(text) != checksum:
        return None
    return text
