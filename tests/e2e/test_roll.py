"""A rolling restart of all engines of a pool under load: real workers over simulated engines."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from billing.wire import redis_keys
from tests.fixtures.gateway import free_ports, wait_until
from tests.fixtures.simulated_vllm import simulated_vllm
from tests.fixtures.stack import PRICE, Stack, empty_stack
from tests.fixtures.steady_load import SteadyLoad

MODEL = "sim"
INSTANCES = ("sim-a", "sim-b")


@pytest.fixture
def shop(tmp_path: Path, postgres_server: str) -> Iterator[Stack]:
    with ExitStack() as ending:
        stack = empty_stack(tmp_path, postgres_server, ending)
        stack.start_billing()
        stack.cell = stack.admin("POST", "models", name=MODEL, context_tokens=2048)["cell"]
        stack.admin("POST", "prices", model=MODEL, **PRICE)
        python = simulated_vllm(tmp_path, "--decode-ms", "10")
        wait_until(lambda: bool(stack.redis.hexists(redis_keys.MODELS, MODEL)), "model in the projection")
        # A metrics page takes the next port where its own is taken: those of engines are below.
        first = free_ports(8)
        for number, instance in enumerate(INSTANCES):
            stack.start(
                instance, "serving", MODEL, "--instance", instance, "--path", str(tmp_path / "model"),
                "--vllm-python", str(python), "--port", str(first + number),
                TAAS_WORKER_METRICS_PORT_FIRST=str(first + 2),
            )  # fmt: skip
        _, stack.key = stack.new_tenant()
        stack.gateway.start()
        wait_until(
            lambda: list(statuses(stack).values()) == ["ready"] * 2,
            "workers",
            instead=lambda: stack.log("sim-a") + stack.log("sim-b"),
        )
        stack.await_served(MODEL)
        yield stack


def statuses(stack: Stack) -> dict[str, str]:
    """By instance."""
    return {row["instance"]: row["status"] for row in stack.admin("GET", "instances")["data"]}


def epochs(stack: Stack) -> dict[str, str]:
    """By instance."""
    return {row["instance"]: row["epoch"] for row in stack.admin("GET", "instances")["data"]}


def test_all_engines_are_started_again_under_load_and_no_caller_sees_it(shop: Stack) -> None:
    before = epochs(shop)
    load = SteadyLoad(shop.gateway.url, shop.key, MODEL, callers=6, tokens=60)
    with load.running():
        wait_until(lambda: len(load.instances()) == 2, "answers of both")
        said = json.loads(shop.taas("pool", "roll", MODEL, "--yes", "--json"))
        answered = len(load.done)
        wait_until(lambda: len(load.done) > answered + 12, "answers afterwards")
    assert [each["instance"] for each in said["restarted"]] == [*INSTANCES]
    after = epochs(shop)
    assert all(after[instance] != before[instance] for instance in INSTANCES)
    assert load.failures() == []
    assert all(len(texts) == 1 for texts in load.texts().values())
    for each in load.done:
        receipt = shop.receipt(each.request_id)
        assert receipt["ending"] == "complete", receipt
        assert receipt["billed"]["output"] == receipt["produced"]["output"] > 0, receipt
    wait_until(lambda: shop.redis.xlen(redis_keys.usage_stream(shop.cell)) == 0, "empty usage stream")
    report = shop.audit()
    assert report["residual_tokens"] == 0
    assert report["findings"] == []


def test_the_only_engine_of_a_model_is_not_taken_away(shop: Stack) -> None:
    shop.processes.pop("sim-b").terminate()
    wait_until(lambda: statuses(shop)["sim-b"] == "down", "end of sim-b")
    before = epochs(shop)["sim-a"]
    with pytest.raises(AssertionError, match="nothing else serves sim while sim-a starts"):
        shop.taas("pool", "roll", MODEL, "--yes")
    assert epochs(shop)["sim-a"] == before


def test_it_stops_at_the_first_engine_that_does_not_start_again(shop: Stack, tmp_path: Path) -> None:
    before = epochs(shop)
    python = tmp_path / "python"
    works = python.read_text()
    python.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(AssertionError, match="the engine of sim-a did not start again"):
        shop.taas("pool", "roll", MODEL, "--yes")
    assert statuses(shop)["sim-b"] == "ready"
    assert epochs(shop)["sim-b"] == before["sim-b"]
    python.write_text(works)
    wait_until(lambda: statuses(shop)["sim-a"] == "ready", "sim-a")
