"""The gateway's Redis client against a real Valkey, and against a server that misbehaves on purpose."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import redis
import uvloop

from gateway.redis.pipe import RedisCommandError, RedisPipe, RedisUnavailable
from tests.billing.cell.requests import CellRequest, usage_events
from tests.fixtures.valkey import ValkeyProcess, free_port

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def pipe(valkey_url: str) -> AsyncIterator[RedisPipe]:
    client = RedisPipe(valkey_url)
    yield client
    await client.close()


@asynccontextmanager
async def fake_redis(handler: Handler, unix_path: Path | None = None) -> AsyncIterator[str]:
    """A server on loopback that answers the greeting (a HELLO that it does not know, as a proxy would, and
    a PING) and leaves the rest to `handler`.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await reader.readuntil(b"PING\r\n")
                writer.write(b"-ERR unknown command 'HELLO'\r\n+PONG\r\n")
                await handler(reader, writer)
        finally:
            writer.close()

    if unix_path is None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    else:
        server = await asyncio.start_unix_server(serve, str(unix_path))
        yield f"unix://{unix_path}"
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_replies_come_back_to_their_callers_in_any_number(pipe: RedisPipe) -> None:
    async def one(number: int) -> None:
        assert await pipe.execute("SET", f"k{number}", number) == b"OK"
        assert await pipe.execute("GET", f"k{number}") == str(number).encode()

    await asyncio.gather(*(one(number) for number in range(500)))


async def test_types_of_replies(pipe: RedisPipe) -> None:
    assert await pipe.execute("GET", "nothing") is None
    assert await pipe.execute("INCR", "n") == 1
    assert await pipe.execute("EVAL", "return {1, 'a', {2}, false}", 0) == [1, b"a", [2], None]
    assert await pipe.execute("EVAL", "return 0", 0) == 0
    assert await pipe.execute("SET", "binary", b"\x00\r\n\xff") == b"OK"
    assert await pipe.execute("GET", "binary") == b"\x00\r\n\xff"


def test_it_runs_on_the_loop_that_the_gateway_uses(valkey_url: str) -> None:
    async def calls() -> list[object]:
        pipe = RedisPipe(valkey_url)
        replies = await asyncio.gather(*(pipe.execute("INCR", "n") for _ in range(64)))
        await pipe.close()
        return replies

    assert uvloop.run(calls()) == list(range(1, 65))


async def test_commands_of_one_tick_leave_in_one_write() -> None:
    reads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            reads.append(chunk)
            writer.write(b"+OK\r\n" * chunk.count(b"INCR"))

    async with fake_redis(handler) as url:
        pipe = RedisPipe(url, scripts=False, timeout_s=0.3)
        await pipe.wait_healthy()
        await asyncio.gather(*(pipe.execute("INCR", "n") for _ in range(64)))
        assert [chunk.count(b"INCR") for chunk in reads] == [64]
        await pipe.close()


async def test_execute_many_keeps_order_and_sends_all_before_it_raises(pipe: RedisPipe) -> None:
    assert await pipe.execute_many([("SET", "a", 1), ("GET", "a"), ("INCR", "a")]) == [b"OK", b"1", 2]
    assert await pipe.execute_many([]) == []
    with pytest.raises(RedisCommandError, match="WRONGTYPE"):
        await pipe.execute_many([("LPUSH", "a", 1), ("SET", "after", 1)])
    assert await pipe.execute("GET", "after") == b"1"


async def test_a_wrong_command_is_the_callers_error_and_harms_nobody_else(pipe: RedisPipe) -> None:
    outcomes = await asyncio.gather(
        pipe.execute("SET", "a", 1), pipe.execute("NOSUCH"), pipe.execute("GET", "a"), return_exceptions=True
    )
    assert outcomes[0] == b"OK"
    assert isinstance(outcomes[1], RedisCommandError)
    assert outcomes[2] == b"1"


async def test_an_argument_that_is_no_text_or_number_is_refused_before_it_is_sent(pipe: RedisPipe) -> None:
    with pytest.raises(TypeError):
        pipe.submit("SET", "a", None)
    await pipe.wait_healthy()
    with pytest.raises(TypeError):
        pipe.submit("SET", "a", None)
    assert await pipe.execute("PING") == b"PONG"


async def test_a_cancelled_caller_does_not_shift_the_replies_of_others(pipe: RedisPipe) -> None:
    await pipe.wait_healthy()
    first = asyncio.create_task(pipe.execute("SET", "a", "first"))
    second = asyncio.create_task(pipe.execute("GET", "a"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"first"


async def test_a_lost_script_is_loaded_again_and_run_once(pipe: RedisPipe, valkey: redis.Redis) -> None:
    await pipe.wait_healthy()
    assert len(valkey.function_list()) == 1
    valkey.function_flush()
    settle = CellRequest(client=valkey, request_id="r").settle_command()
    replies = await asyncio.gather(*(pipe.execute(*settle) for _ in range(5)))
    assert sorted(reply[0] for reply in replies) == [b"already_settled"] * 4 + [b"orphan"]
    assert len(usage_events(valkey)) == 1


async def test_a_script_that_is_not_ours_is_the_callers_error(pipe: RedisPipe) -> None:
    with pytest.raises(RedisCommandError, match="Function not found"):
        await pipe.execute("FCALL", "no_such_function", 0)


async def test_with_redis_away_calls_fail_at_once_and_work_again_when_it_is_back(
    own_valkey: ValkeyProcess,
) -> None:
    pipe = RedisPipe(own_valkey.url)
    await pipe.execute("SET", "a", 1)
    own_valkey.kill()
    with pytest.raises(RedisUnavailable):
        await pipe.execute("GET", "a")
    assert not pipe.healthy
    with pytest.raises(RedisUnavailable) as failure:
        await pipe.execute("GET", "a")
    assert not failure.value.unknown_outcome
    own_valkey.start()
    await asyncio.wait_for(pipe.wait_healthy(), 5)
    assert await pipe.execute("GET", "a") == b"1"
    await pipe.close()


async def test_redis_down_at_start_is_an_error_of_the_call_not_of_the_client() -> None:
    pipe = RedisPipe(f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(RedisUnavailable, match="cannot connect") as failure:
        await pipe.execute("PING")
    assert not failure.value.unknown_outcome
    await pipe.close()


async def test_calls_on_a_connection_that_breaks_have_an_unknown_outcome() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"INCR\r\n")

    async with fake_redis(handler) as url:
        pipe = RedisPipe(url, scripts=False, timeout_s=0.3)
        outcomes = await asyncio.gather(
            *(pipe.execute("INCR", "n") for _ in range(3)), return_exceptions=True
        )
        assert [outcome.unknown_outcome for outcome in outcomes if isinstance(outcome, RedisUnavailable)] == [
            True
        ] * 3
        await pipe.close()


async def test_a_silent_server_is_given_up_after_the_timeout_and_found_again(
    own_valkey: ValkeyProcess,
) -> None:
    pipe = RedisPipe(own_valkey.url, timeout_s=0.2)
    await pipe.execute("SET", "a", 1)
    process_id = own_valkey._process.pid  # type: ignore[union-attr]
    os.kill(process_id, signal.SIGSTOP)
    try:
        with pytest.raises(RedisUnavailable, match="timeout") as failure:
            await pipe.execute("INCR", "a")
        assert failure.value.unknown_outcome
        with pytest.raises(RedisUnavailable, match="timeout"):
            await pipe.execute("INCR", "a")
    finally:
        os.kill(process_id, signal.SIGCONT)
    await asyncio.wait_for(pipe.wait_healthy(), 5)
    assert await pipe.execute("PING") == b"PONG"
    await pipe.close()


async def test_a_process_that_did_not_run_does_not_give_up_a_server_that_answers(
    own_valkey: ValkeyProcess,
) -> None:
    pipe = RedisPipe(own_valkey.url, timeout_s=0.2)
    await pipe.execute("SET", "a", 1)
    for _ in range(3):
        answer = pipe.submit("INCR", "a")
        time.sleep(0.5)  # noqa: ASYNC251 - the loop stands still: neither is the command sent nor a reply read
        await answer
    assert await pipe.execute("GET", "a") == b"4"
    await pipe.close()


async def test_a_process_that_is_always_late_gives_up_a_server_that_does_not_answer() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass

    async with fake_redis(handler) as url:
        pipe = RedisPipe(url, scripts=False, timeout_s=0.2)
        await pipe.wait_healthy()
        answer = pipe.submit("INCR", "a")
        for _ in range(6):
            time.sleep(0.15)  # noqa: ASYNC251 - each tick of the loop is late
            await asyncio.sleep(0)
        with pytest.raises(RedisUnavailable, match="timeout"):
            await asyncio.wait_for(answer, 0.01)
        await pipe.close()


@pytest.mark.parametrize(
    "code", ["READONLY", "LOADING", "OOM", "MOVED 1234 10.0.0.1:6379", "CLUSTERDOWN", "MISCONF"]
)
async def test_a_server_that_cannot_serve_now_is_unavailable_with_its_reason(code: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"INCR\r\n")
        writer.write(f"-{code} some words\r\n".encode())
        await reader.read()

    async with fake_redis(handler) as url:
        pipe = RedisPipe(url, scripts=False, timeout_s=0.3)
        with pytest.raises(RedisUnavailable) as failure:
            await pipe.execute("INCR", "n")
        assert failure.value.reason == code.split(maxsplit=1)[0].lower()
        assert not failure.value.unknown_outcome
        await pipe.close()


async def test_out_of_memory_is_unavailable_on_a_real_server(pipe: RedisPipe, valkey: redis.Redis) -> None:
    valkey.config_set("maxmemory", "1")
    try:
        with pytest.raises(RedisUnavailable, match="oom"):
            await pipe.execute("SET", "a", 1)
    finally:
        valkey.config_set("maxmemory", "0")
    assert await pipe.execute("SET", "a", 1) == b"OK"


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b":abc\r\n"])
async def test_a_server_that_speaks_something_else_is_unavailable(garbage: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"INCR\r\n")
        writer.write(garbage)
        await reader.read()

    async with fake_redis(handler) as url:
        pipe = RedisPipe(url, scripts=False, timeout_s=0.3)
        with pytest.raises(RedisUnavailable, match="protocol") as failure:
            await pipe.execute("INCR", "n")
        assert failure.value.unknown_outcome
        await pipe.close()


async def test_a_reply_that_nobody_asked_for_never_reaches_the_next_caller() -> None:
    answers = [b":1\r\n:999\r\n", b":2\r\n"]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"INCR\r\n")
        writer.write(answers.pop(0))
        await reader.read()

    async with fake_redis(handler) as url:
        pipe = RedisPipe(url, scripts=False, timeout_s=0.3)
        assert await pipe.execute("INCR", "n") == 1
        assert await pipe.execute("INCR", "n") == 2
        await pipe.close()


async def test_after_close_calls_are_refused(valkey_url: str) -> None:
    pipe = RedisPipe(valkey_url)
    pending = pipe.submit("SET", "a", 1)
    await pipe.wait_healthy()
    await pipe.close()
    assert await pending == b"OK"
    with pytest.raises(RedisUnavailable, match="closed"):
        await pipe.execute("GET", "a")
    await pipe.close()


async def test_password_and_database_are_used(own_valkey: ValkeyProcess) -> None:
    with redis.Redis(port=own_valkey.port) as admin:
        admin.config_set("requirepass", "s@cret")
        try:
            base = f"127.0.0.1:{own_valkey.port}"
            pipe = RedisPipe(f"redis://:s%40cret@{base}/3")
            await pipe.execute("SET", "a", "in 3")
            await pipe.close()
            for wrong in (f"redis://{base}", f"redis://:wrong@{base}"):
                refused = RedisPipe(wrong)
                with pytest.raises(RedisUnavailable, match=r"asks for a password|wrong user or password"):
                    await refused.execute("GET", "a")
                await refused.close()
        finally:
            admin.execute_command("CONFIG", "SET", "requirepass", "")
    with redis.Redis(port=own_valkey.port, db=3, decode_responses=True) as reader:
        assert reader.get("a") == "in 3"


async def test_a_unix_socket_serves(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"INCR\r\n")
        writer.write(b":1\r\n")
        await reader.read()

    async with fake_redis(handler, unix_path=tmp_path / "redis.sock") as url:
        pipe = RedisPipe(url, scripts=False, timeout_s=0.3)
        assert await pipe.execute("INCR", "n") == 1
        await pipe.close()
