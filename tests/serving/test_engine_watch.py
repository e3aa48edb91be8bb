"""An engine that is slow to answer once is not given up for it, neither while it serves nor while it
drains.
"""

import threading
from collections.abc import AsyncIterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import pytest

from serving.engine_client import EngineClient, EngineUnanswering
from serving.engine_metrics import EngineReading
from serving.engine_watch import until_idle
from tests.serving.fake_engine import METRICS

BUSY, IDLE, SILENT = "busy", "idle", "silent"
MOST: Final = 3


class Scripted:
    """Answers `/metrics` as it is told, one look after the other, the last of it for ever."""

    def __init__(self) -> None:
        self.looks: list[str] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                look = script.looks.pop(0) if len(script.looks) > 1 else script.looks[0]
                body = METRICS.format(running=int(look == BUSY), prompt=2, generation=1).encode()
                self.send_response(503 if look == SILENT else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    async def drained(self, looks: Sequence[str], *, drain_s: float) -> tuple[bool, list[EngineReading]]:
        self.looks = list(looks)
        readings: list[EngineReading] = []
        async with EngineClient(f"http://127.0.0.1:{self.server.server_address[1]}", "k") as client:
            idle = await until_idle(client, 0, drain_s, readings.append, unanswered_most=MOST, poll_s=0.001)
        return idle, readings


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    made = Scripted()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


async def test_a_look_that_fails_while_it_drains_cuts_nobody_off(scripted: Scripted) -> None:
    idle, readings = await scripted.drained(
        [BUSY, SILENT, SILENT, BUSY, SILENT, SILENT, IDLE, IDLE], drain_s=600
    )
    assert idle
    assert [reading.idle for reading in readings] == [False, False, True, True]


async def test_it_is_idle_only_where_two_looks_in_a_row_say_so(scripted: Scripted) -> None:
    idle, readings = await scripted.drained([IDLE, SILENT, IDLE, BUSY, IDLE, IDLE], drain_s=600)
    assert idle
    assert len(readings) == 5


async def test_one_that_does_not_answer_again_and_again_is_given_up(scripted: Scripted) -> None:
    with pytest.raises(EngineUnanswering):
        await scripted.drained([BUSY, SILENT], drain_s=600)
    assert scripted.looks == [SILENT]


async def test_the_time_to_drain_ends_for_one_that_does_not_answer_too(scripted: Scripted) -> None:
    idle, readings = await scripted.drained([SILENT, BUSY], drain_s=0)
    assert not idle
    assert readings == []
