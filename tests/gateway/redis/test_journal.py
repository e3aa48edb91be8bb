"""The journal of settles: what was appended reaches Redis once Redis is there, whatever died in between."""

import asyncio
import fcntl
import os
import resource
import signal
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from billing.cell.scripts import Command, leave_call
from billing.wire.ending import Ending
from gateway.redis.journal import Journal
from gateway.redis.journal_records import Admission, encode, recover
from gateway.redis.pipe import RedisPipe, RedisUnavailable
from tests.billing.cell.requests import CellRequest, usage_events


def settle(number: int) -> Command:
    return CellRequest(client=None, request_id=f"r{number}").settle_command(number)  # type: ignore[arg-type]


@pytest.fixture
async def pipe(valkey_url: str) -> AsyncIterator[RedisPipe]:
    client = RedisPipe(valkey_url)
    yield client
    await client.close()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal(tmp_path / "journal")
    await opened.open()
    yield opened
    await opened.close()


def request_of(command: Command) -> str:
    """The request id of a settle."""
    return str(orjson.loads(command[6])["request_id"])


def as_read(call: Command) -> Command:
    """A call as it comes back out of a journal: text where bytes were."""
    return tuple(part.decode() if isinstance(part, bytes) else part for part in call)


def events(client: redis.Redis) -> list[str]:
    return [event["request_id"] for event in usage_events(client)]


def journal_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "journal").glob("*.journal"))


def die(journal: Journal) -> None:
    """What a kill -9 does to a journal: its file is closed, and unlocked, as it is."""
    fcntl.flock(journal._file, fcntl.LOCK_UN)


async def unavailable(*command: Any) -> Any:
    raise RedisUnavailable("away", unknown_outcome=True)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full: writes past `size` fail as they do with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


async def test_what_was_appended_is_sent_in_order_and_then_gone(
    journal: Journal, pipe: RedisPipe, valkey: redis.Redis, tmp_path: Path
) -> None:
    for number in range(150):
        journal.append(settle(number))
    assert journal.entries == 150
    assert await journal.drain(pipe.execute) == 150
    assert events(valkey) == [f"r{number}" for number in range(150)]
    assert journal.empty
    assert [path.stat().st_size for path in journal_files(tmp_path)] == [0]
    assert await journal.drain(pipe.execute) == 0


async def test_a_settle_that_did_arrive_is_not_recorded_twice(
    journal: Journal, pipe: RedisPipe, valkey: redis.Redis
) -> None:
    await pipe.execute(*settle(1))
    journal.append(settle(1))
    journal.append(settle(1))
    await journal.drain(pipe.execute)
    assert events(valkey) == ["r1"]


async def test_a_failing_drain_loses_nothing(journal: Journal, pipe: RedisPipe, valkey: redis.Redis) -> None:
    for number in range(3):
        journal.append(settle(number))
    with pytest.raises(RedisUnavailable):
        await journal.drain(unavailable)
    assert journal.entries == 3
    assert await journal.drain(pipe.execute) == 3
    assert events(valkey) == ["r0", "r1", "r2"]


async def test_what_is_appended_while_draining_is_sent_too(
    journal: Journal, pipe: RedisPipe, valkey: redis.Redis
) -> None:
    async def execute(*command: Any) -> Any:
        if request_of(command) == "r0":
            journal.append(settle(7))
        return await pipe.execute(*command)

    journal.append(settle(0))
    await asyncio.gather(journal.drain(execute), journal.drain(execute))
    assert sorted(set(events(valkey))) == ["r0", "r7"]
    assert journal.empty


async def test_a_dead_process_settle_counts_before_what_its_admission_says(
    journal: Journal, pipe: RedisPipe, valkey: redis.Redis, tmp_path: Path
) -> None:
    """It admitted two requests without Redis, one of them ended and was settled, and then it was killed."""
    for number in (1, 2):
        request = CellRequest(client=None, request_id=f"r{number}")  # type: ignore[arg-type]
        died = request.settle_command(ending=Ending.GATEWAY_DIED)
        journal.append_admission(Admission(request.reserve_command(), died))
    journal.append(settle(1))
    die(journal)
    heir = Journal(tmp_path / "journal")
    await heir.open()
    await heir.drain(pipe.execute)
    endings = {event["request_id"]: event["ending"] for event in usage_events(valkey)}
    assert endings == {"r1": "complete", "r2": "gateway_died"}
    await heir.close()


async def test_a_long_journal_is_read_in_pieces(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tasks have their turn meanwhile: nothing as long as an outage may stand in the event loop."""
    read, sent = [], []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, length, at: read.append(length) or pread(file, length, at))

    async def execute(*command: Any) -> None:
        sent.append(command)

    for number in range(3_000):
        journal.append(settle(number))
    assert await journal.drain(execute) == 3_000
    assert [request_of(command) for command in sent] == [f"r{number}" for number in range(3_000)]
    assert len(read) > 2
    assert max(read) <= 1024 * 1024
    assert journal.empty


async def test_records_reach_the_disk_in_the_background(journal: Journal, tmp_path: Path) -> None:
    journal.append(settle(1))
    assert recover(journal_files(tmp_path)[0].read_bytes(), own=True).commands == (as_read(settle(1)),)
    await journal.synced()


async def test_a_dead_process_journal_is_sent_by_the_next(
    pipe: RedisPipe, valkey: redis.Redis, tmp_path: Path
) -> None:
    code = (
        "import asyncio, os, signal, sys; from pathlib import Path; from gateway.redis.journal import "
        "Journal;"
        "from tests.gateway.redis.test_journal import settle\n"
        "async def main():\n"
        "    j = Journal(Path(sys.argv[1])); await j.open(); j.append(settle(1)); j.append(settle(2))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    dead = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, str(tmp_path / "journal")], check=False
    )
    assert dead.returncode == -signal.SIGKILL
    journal = Journal(tmp_path / "journal")
    await journal.open()
    assert journal.entries == 2
    assert await journal.drain(pipe.execute) == 2
    assert events(valkey) == ["r1", "r2"]
    assert len(journal_files(tmp_path)) == 1
    await journal.close()
    assert journal_files(tmp_path) == []


async def test_two_live_processes_never_drain_the_same_file(
    journal: Journal, pipe: RedisPipe, valkey: redis.Redis, tmp_path: Path
) -> None:
    journal.append(settle(1))
    other = Journal(tmp_path / "journal")
    await other.open()
    assert await other.drain(pipe.execute) == 0
    assert events(valkey) == []
    die(journal)
    assert await other.drain(pipe.execute) == 1
    await other.close()


async def test_a_journal_with_records_outlives_a_clean_end(journal: Journal, tmp_path: Path) -> None:
    journal.append(settle(1))
    await journal.close()
    assert len(recover(journal_files(tmp_path)[0].read_bytes(), own=True).commands) == 1


@pytest.mark.parametrize(
    "torn", [b"4", b"400 12345678 {", encode(settle(3))[:-1], encode(settle(3))[:-9] + b"\n"]
)
async def test_fault_38_a_torn_tail_is_cut_and_the_rest_is_sent(
    journal: Journal, pipe: RedisPipe, valkey: redis.Redis, tmp_path: Path, torn: bytes
) -> None:
    left = tmp_path / "journal" / "1-a.journal"
    left.write_bytes(encode(settle(1)) + encode(settle(2)) + torn)
    with pytest.raises(RedisUnavailable):
        await journal.drain(unavailable)
    assert left.read_bytes().startswith(encode(settle(1)) + encode(settle(2)))
    assert await journal.drain(pipe.execute) == 2
    assert events(valkey) == ["r1", "r2"]
    assert not left.exists()


async def test_a_damaged_line_in_the_middle_is_set_aside_and_costs_no_other(
    journal: Journal, pipe: RedisPipe, valkey: redis.Redis, tmp_path: Path
) -> None:
    damaged = encode(settle(2)).replace(b"r2", b"r9")
    (tmp_path / "journal" / "1-a.journal").write_bytes(encode(settle(1)) + damaged + encode(settle(3)))
    assert await journal.drain(pipe.execute) == 2
    assert events(valkey) == ["r1", "r3"]
    assert (tmp_path / "journal" / "rejected").read_bytes() == damaged


async def test_a_record_that_redis_refuses_for_good_does_not_block_the_rest(
    journal: Journal, pipe: RedisPipe, valkey: redis.Redis, tmp_path: Path
) -> None:
    valkey.set(CellRequest(client=valkey, request_id="r1").reservation, "not a hash")
    for number in range(3):
        journal.append(settle(number))
    await journal.drain(pipe.execute)
    assert events(valkey) == ["r0", "r2"]
    assert recover((tmp_path / "journal" / "rejected").read_bytes(), own=True).commands == (
        as_read(settle(1)),
    )


async def test_past_its_cap_admission_must_stop_but_nothing_is_refused(
    pipe: RedisPipe, valkey: redis.Redis, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal", bytes_max=2 * len(encode(settle(1))))
    await journal.open()
    journal.append(settle(1))
    assert not journal.full
    journal.append(settle(2))
    assert journal.full
    journal.append(settle(3))
    await journal.drain(pipe.execute)
    assert not journal.full
    assert len(events(valkey)) == 3
    await journal.close()


async def test_fault_38_a_full_disk_stops_admission_and_loses_nothing(
    journal: Journal, pipe: RedisPipe, valkey: redis.Redis, tmp_path: Path
) -> None:
    journal.append(settle(1))
    with files_of_at_most(len(encode(settle(1))) + 20):
        journal.append(settle(2))
        assert journal.full
        assert journal_files(tmp_path)[0].read_bytes() == encode(settle(1))
        with pytest.raises(RedisUnavailable):
            await journal.drain(unavailable)
    assert journal.entries == 2
    journal.append(settle(3))
    assert not journal.full
    await journal.drain(pipe.execute)
    assert events(valkey) == ["r1", "r2", "r3"]


def test_a_record_is_sent_through_todays_script() -> None:
    """The name that a function has in the version that wrote it is not in it."""
    line = encode(settle(1))
    assert str(settle(1)[1]).encode() not in line
    assert [as_read(command) for command in recover(line, own=True).commands] == [as_read(settle(1))]


@pytest.mark.parametrize("cancelled", [False, True])
def test_records_of_the_version_before_named_arguments_are_read(cancelled: bool) -> None:
    request = CellRequest(client=None, request_id="r1")  # type: ignore[arg-type]
    keys = request.keys
    places = [
        5, request.reservation, keys.tenant_bucket, keys.key_bucket, keys.open_requests, request.usage_stream,
    ]  # fmt: skip
    ended = request.settle_command(7, cancelled=cancelled)
    event = str(as_read(ended)[-1])
    settled = [*places, "settle", "r1", 0, 7, 0, 0, 0, 0, event, "", "", "", int(cancelled)]
    left = [*places, "leave", "r1", int(cancelled), 0]
    journal = b"".join(map(line_of, (settled, left, {"reserve": [], "died": settled})))
    found = recover(journal, own=False)
    expected = [as_read(ended), as_read(leave_call(keys, refused=cancelled))]
    assert [as_read(command) for command in found.commands] == expected
    assert [as_read(command) for command in found.died] == expected[:1]


def line_of(record: object) -> bytes:
    text = orjson.dumps(record)
    return b"%d %08x %b\n" % (len(text), zlib.crc32(text), text)


@given(st.integers(0, 4), st.integers(0, 3000), st.binary(max_size=40))
def test_any_cut_keeps_every_whole_record_before_it(count: int, cut: int, tail: bytes) -> None:
    lines = [encode(settle(number)) for number in range(count)]
    text = b"".join(lines)[:cut]
    whole = sum(1 for number in range(count) if sum(map(len, lines[: number + 1])) <= len(text))
    recovered = recover(text + tail.replace(b"\n", b""), own=True)
    assert len(recovered.commands) == whole
    assert recovered.valid_bytes == sum(map(len, lines[:whole]))
    assert recovered.damaged == ()
