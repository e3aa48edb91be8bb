"""A launcher over real workers and simulated engines: what runs is what was applied, whatever happens."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from billing.wire import redis_keys
from tests.fixtures.gateway import free_ports, wait_until
from tests.fixtures.simulated_vllm import simulated_vllm
from tests.fixtures.stack import PRICE, SERVICE_KEY, Stack, empty_stack
from tests.fixtures.steady_load import SteadyLoad

MODEL = "sim"


class Fleet:
    """An installation whose instances a launcher runs."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.file = folder / "taas.yaml"
        self.path = folder / "model"

    def apply(self, instances: int, *engine_args: str) -> None:
        words = f"[{', '.join(engine_args)}]"
        self.file.write_text(
            f"pools:\n  {MODEL}:\n"
            f"    launch: {{instances: {instances}, path: {self.path}, engine_args: {words}}}\n"
        )
        self.stack.taas("apply", str(self.file), "--yes")

    def ready(self) -> set[str]:
        rows = self.stack.admin("GET", "instances")["data"]
        return {row["instance"] for row in rows if row["status"] == "ready"}

    def await_ready(self, count: int, *, without: set[str] | None = None) -> set[str]:
        gone = without or set()
        wait_until(
            lambda: len(self.ready()) == count and not self.ready() & gone,
            f"{count} instances", 60, instead=lambda: self.stack.log("launcher"),
        )  # fmt: skip
        return self.ready()

    def workers(self) -> list[psutil.Process]:
        """Of the launcher: the guard of each, and then the worker."""
        launcher = psutil.Process(self.stack.processes["launcher"].pid)
        return [child for child in launcher.children(recursive=True) if "--instance" in child.cmdline()]


@pytest.fixture
def fleet(tmp_path: Path, postgres_server: str) -> Iterator[Fleet]:
    with ExitStack() as ending:
        stack = empty_stack(tmp_path, postgres_server, ending)
        stack.start_billing()
        stack.cell = stack.admin("POST", "models", name=MODEL, context_tokens=2048)["cell"]
        stack.admin("POST", "prices", model=MODEL, **PRICE)
        python = simulated_vllm(tmp_path, "--decode-ms", "10")
        _, stack.key = stack.new_tenant()
        stack.start(
            "launcher", "serving.launching", TAAS_ADMIN_URL=stack.admin_url, TAAS_SERVICE_KEY=SERVICE_KEY,
            TAAS_VLLM_PYTHON=str(python), TAAS_ENGINE_PORT_FIRST=str(free_ports(8)),
            TAAS_WORKER_METRICS_PORT_FIRST=str(free_ports(8)),
        )  # fmt: skip
        stack.gateway.start()
        yield Fleet(stack, tmp_path)


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
    before = fleet.await_ready(2)
    victim = fleet.workers()[0]
    os.kill(victim.pid, signal.SIGKILL)
    after = fleet.await_ready(2, without={victim.cmdline()[-1]} if victim.is_running() else set())
    wait_until(lambda: len(fleet.ready() - before) == 1, "replacement")
    after = fleet.ready()
    # One that stands still is not dead: its lease runs out, and when it goes on it is stopped.
    for process in (stopped := fleet.workers())[-2:]:
        process.suspend()
    lost = stopped[-1].cmdline()
    instance = lost[lost.index("--instance") + 1]
    assert instance in after
    fleet.await_ready(2, without={instance})
    wait_until(lambda: bool(fleet.stack.redis.hget(redis_keys.FENCED, instance)), "fence")
    wait_until(lambda: not any(process.is_running() for process in stopped[-2:]), "end of it")
