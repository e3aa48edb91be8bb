"""A launcher over real workers and simulated engines: what runs is what was applied, whatever happens."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from billing.wire import redis_keys
from tests.fixtures.fleet import MODEL, Fleet, new_fleet
from tests.fixtures.gateway import wait_until
from tests.fixtures.steady_load import SteadyLoad


@pytest.fixture
def fleet(tmp_path: Path, postgres_server: str) -> Iterator[Fleet]:
    with ExitStack() as ending:
        yield new_fleet(tmp_path, postgres_server, ending)


def test_what_was_applied_runs_and_is_exchanged_under_load_without_a_failed_request(fleet: Fleet) -> None:
    stack = fleet.stack
    fleet.apply(2)
    first = fleet.await_ready(2)
    stack.await_served(MODEL)
    load = SteadyLoad(stack.gateway.url, stack.key, MODEL, callers=4, tokens=40)
    with load.running():
        wait_until(lambda: len(load.done) > 8, "answers")
        fleet.apply(2, "--max-num-seqs", "8")
        second = fleet.await_ready(2, without=first)
        fleet.apply(1, "--max-num-seqs", "8")
        (last,) = fleet.await_ready(1)
        answered = len(load.done)
        wait_until(lambda: len(load.done) > answered + 8, "answers afterwards")
    assert last in second
    assert load.failures() == []
    assert all(len(texts) == 1 for texts in load.texts().values())
    for each in load.done:
        receipt = stack.receipt(each.request_id)
        assert receipt["ending"] == "complete", receipt
        assert receipt["billed"]["output"] == receipt["produced"]["output"] > 0, receipt
    wait_until(lambda: stack.redis.xlen(redis_keys.usage_stream(stack.cell)) == 0, "empty usage stream")
    assert stack.audit()["residual_tokens"] == 0
    launcher = stack.processes["launcher"]
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(30) == 0, stack.log("launcher")
    assert fleet.ready() == set()


def test_a_killed_worker_is_replaced_and_one_whose_lease_ran_out_is_fenced(fleet: Fleet) -> None:
    fleet.apply(2)
    first = fleet.await_ready(2)
    killed, stays = sorted(first)
    fleet.workers()[killed].kill()
    second = fleet.await_ready(2, without={killed})
    # One that stands still is not dead: its lease runs out, it is replaced, and it is never ready again.
    still = fleet.workers()[stays]
    family = [still, *still.children(recursive=True)]
    still.suspend()
    third = fleet.await_ready(2, without={stays})
    assert second - {stays} < third
    assert fleet.stack.redis.hget(redis_keys.FENCED, stays)
    wait_until(lambda: not any(alive(process) for process in family), "end of it")


def alive(process: psutil.Process) -> bool:
    """Not gone, and not a zombie."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_launch_that_cannot_start_leaves_what_serves(fleet: Fleet) -> None:
    """Neither an instance of the old way is taken away, nor is the new one tried without a pause."""
    fleet.apply(2)
    before = fleet.await_ready(2)
    fleet.apply(2, path="nowhere")
    said = "ended with status 1; its output is in"
    wait_until(lambda: fleet.stack.log("launcher").count(said) == 3, "three failed starts")
    assert fleet.ready() == before
    assert "drains" not in fleet.stack.log("launcher")
    log, _, why = fleet.stack.log("launcher").rpartition(said)[2].partition(";")
    assert "nowhere holds no model (no config.json)" in why
    assert Path(log.strip()).exists()
    fleet.apply(2)
    wait_until(lambda: len(fleet.workers()) == 2, "two workers")
    assert fleet.ready() == before
