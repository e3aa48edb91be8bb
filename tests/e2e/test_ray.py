"""A fleet on Ray: two nodes with an instance each, and the raylet of one is killed under load."""

import importlib.util
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from billing.wire import redis_keys
from tests.fixtures.fleet import MODEL, Fleet, new_fleet
from tests.fixtures.gateway import wait_until
from tests.fixtures.ray_cluster import RayCluster
from tests.fixtures.steady_load import SteadyLoad

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is an extra: pip install --require-hashes -r serving/ray.lock")
    made = RayCluster(nodes=2, slots=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str, cluster: RayCluster
) -> Iterator[Fleet]:
    with ExitStack() as ending:
        yield new_fleet(
            tmp_path_factory.mktemp("ray"), postgres_server, ending, TAAS_LAUNCHER="ray",
            TAAS_RAY_ADDRESS=cluster.address,
        )  # fmt: skip


@pytest.fixture
def fleet(installation: Fleet, cluster: RayCluster) -> Iterator[Fleet]:
    """One for the module, on two nodes that live; a test begins and ends without instances."""
    cluster.revive(1)
    yield installation
    installation.apply(0, resources="{slot: 1}")
    wait_until(lambda: installation.ready() == set() and not workers_of(cluster), "end of all")


def workers_of(cluster: RayCluster) -> dict[str, psutil.Process]:
    """Worker processes of the cluster by instance."""
    found = {}
    for raylet in cluster.raylets:
        for process in raylet.children(recursive=True) if raylet.is_running() else ():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if "--instance" in words and "--" not in words:
                found[words[words.index("--instance") + 1]] = process
    return found


def test_kill_9_of_a_raylet_under_load_is_served_by_the_other_node_and_all_is_billed(
    fleet: Fleet, cluster: RayCluster
) -> None:
    stack = fleet.stack
    fleet.apply(2, resources="{slot: 1}")
    before = fleet.await_ready(2)
    there = workers_of(cluster)
    nodes = {instance: cluster.node_of(there[instance]) for instance in before}
    assert set(nodes.values()) == {1, 2}, nodes
    stack.await_served(MODEL)
    load = SteadyLoad(stack.gateway.url, stack.key, MODEL, callers=6, tokens=40)
    with load.running():
        wait_until(lambda: len(load.instances()) == 2 and len(load.done) > 12, "answers of both")
        (lost,) = [instance for instance, node in nodes.items() if node == 1]
        engine = there[lost].children(recursive=True)
        killed = time.monotonic()
        cluster.kill(1)
        wait_until(lambda: any(each.began_s > killed and not each.failed for each in load.done), "an answer")
        answered_s = time.monotonic() - killed
        wait_until(lambda: not any(process.is_running() for process in [there[lost], *engine]), "its end")
        died_s = time.monotonic() - killed
        wait_until(
            lambda: bool(stack.redis.hget(redis_keys.FENCED, lost)),
            "fence",
            20,
            instead=lambda: stack.log("launcher"),
        )
        fenced_s = time.monotonic() - killed
        after = fleet.await_ready(2, without={lost})
        ready_s = time.monotonic() - killed
        (new,) = after - before
        assert cluster.node_of(workers_of(cluster)[new]) == 2
        count = len(load.done)
        wait_until(lambda: len(load.done) > count + 12, "answers afterwards")
    print(
        f"an answer after {answered_s:.1f} s; its processes ended after {died_s:.1f} s, fenced after "
        f"{fenced_s:.1f} s, replaced after {ready_s:.1f} s; {len(load.done)} requests, "
        f"{len(load.failures())} failed"
    )
    assert load.failures() == []
    assert all(len(texts) == 1 for texts in load.texts().values())
    for each in load.done:
        receipt = stack.receipt(each.request_id)
        assert receipt["ending"] == "complete", receipt
        assert receipt["billed"]["output"] > 0, receipt
    wait_until(lambda: stack.redis.xlen(redis_keys.usage_stream(stack.cell)) == 0, "empty usage stream")
    report = stack.audit()
    assert report["residual_tokens"] == 0, report
    assert {each["kind"] for each in report["findings"]} <= {"counter_lost", "reconciled"}, report


def test_a_launcher_that_was_killed_finds_what_runs(fleet: Fleet, cluster: RayCluster) -> None:
    fleet.apply(1, resources="{slot: 1}")
    before = fleet.await_ready(1)
    fleet.stack.processes["launcher"].kill()
    fleet.start_launcher()
    fleet.apply(2, resources="{slot: 1}")
    after = fleet.await_ready(2)
    assert before < after


def test_a_node_that_stood_still_finds_itself_replaced_and_does_not_come_back(
    fleet: Fleet, cluster: RayCluster
) -> None:
    """Ray's health checks have not failed yet: the lease says that the instance is lost."""
    stack = fleet.stack
    fleet.apply(2, resources="{slot: 1}")
    before = fleet.await_ready(2)
    there = workers_of(cluster)
    (lost,) = [instance for instance in before if cluster.node_of(there[instance]) == 1]
    epoch = json.loads(stack.redis.hget(redis_keys.INSTANCES, lost) or "{}")["epoch"]
    stack.await_served(MODEL)
    load = SteadyLoad(stack.gateway.url, stack.key, MODEL, callers=6, tokens=40)
    with load.running():
        wait_until(lambda: len(load.instances()) == 2 and len(load.done) > 12, "answers of both")
        node = [cluster.raylets[1], *cluster.raylets[1].children(recursive=True)]
        stopped = time.monotonic()
        for process in node:
            process.suspend()
        wait_until(lambda: bool(stack.redis.hget(redis_keys.FENCED, lost)), "fence")
        fenced_s = time.monotonic() - stopped
        after = fleet.await_ready(2, without={lost})
        ready_s = time.monotonic() - stopped
        for process in node:
            process.resume()
        wait_until(lambda: lost not in workers_of(cluster), "end of it")
        count = len(load.done)
        wait_until(lambda: len(load.done) > count + 12, "answers afterwards")
    print(f"fenced after {fenced_s:.1f} s, replaced after {ready_s:.1f} s; {len(load.done)} requests, "
          f"{len(load.failures())} failed")  # fmt: skip
    assert lost not in after
    assert json.loads(stack.redis.hget(redis_keys.INSTANCES, lost) or "{}")["epoch"] == epoch
    assert fleet.ready() == after
    assert load.failures() == []
    for each in load.done:
        receipt = stack.receipt(each.request_id)
        assert receipt["ending"] == "complete", receipt
    wait_until(lambda: stack.redis.xlen(redis_keys.usage_stream(stack.cell)) == 0, "empty usage stream")
    assert stack.audit()["residual_tokens"] == 0
