"""What a launch says of its instances, and the words with which they are started."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from serving.launching.further_node import headless
from serving.launching.launcher import Launch, origin
from serving.launching.ray_cluster import command
from serving.launching.reconcile import Reconciler

LAUNCH = Launch(
    pool="org/m",
    model="org/m",
    instances=2,
    gpus=4,
    resources={"a": 1, "b": 2},
    path="/m",
    engine_args=("-x", "1"),
)


@given(st.text(alphabet="a/.-_9", min_size=1, max_size=30))
def test_an_instance_says_of_which_pool_it_is_and_how_it_was_started(pool: str) -> None:
    launch = replace(LAUNCH, pool=pool)
    assert origin(launch.new_instance()) == (pool, launch.spec())
    assert launch.new_instance() != launch.new_instance()


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"instances": 9}, True),
        ({"resources": {"b": 2, "a": 1}}, True),
        ({"resources": {"a": 2, "b": 2}}, False),
        ({"gpus": 2}, False),
        ({"nodes": 2}, False),
        ({"path": None}, False),
        ({"engine_args": ("-x", "2")}, False),
    ],
)
def test_another_number_of_instances_is_no_other_way_of_starting_them(
    changed: dict[str, object], same: bool
) -> None:
    assert (replace(LAUNCH, **changed).spec() == LAUNCH.spec()) is same  # type: ignore[arg-type]


def test_a_worker_is_started_as_the_launch_says() -> None:
    assert command(LAUNCH, "i", 0, "10.0.0.5") == (
        "serving", ["org/m", "--instance", "i", "--path", "/m", "--engine-arg=-x", "--engine-arg=1"],
    )  # fmt: skip
    pooling = Launch(pool="m/pooling", model="m", instances=1)
    assert command(pooling, "i", 0, "")[1] == ["m", "--instance", "i", "--pooling"]


def test_an_engine_over_two_nodes_has_one_head_and_one_without_a_server() -> None:
    wide = replace(LAUNCH, nodes=2)
    for rank, module in enumerate(("serving", "serving.launching.further_node")):
        started, words = command(wide, "i", rank, "10.0.0.5")
        assert started == module
        mine = [word.removeprefix("--engine-arg=") for word in words if word.startswith("--engine-arg=")][2:]
        given = dict(zip(mine[::2], mine[1::2], strict=True))
        assert (given["--nnodes"], given["--node-rank"], given["--master-addr"]) == (
            "2",
            str(rank),
            "10.0.0.5",
        )
    server = [
        "py",
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        "/m",
        "--host",
        "h",
        "--nnodes",
        "2",
    ]
    assert headless(server) == [
        "py", "-m", "vllm.entrypoints.cli.main", "serve", "/m", "--host", "h", "--nnodes", "2", "--headless",
    ]  # fmt: skip


class Failing:
    """A launcher whose workers end at once."""

    def __init__(self) -> None:
        self.started: list[str] = []

    async def start(self, instance: str, launch: Launch) -> None:
        self.started.append(origin(instance)[1])

    async def running(self) -> frozenset[str]:
        return frozenset()

    async def drain(self, instance: str) -> None:
        raise AssertionError

    async def end(self, instance: str) -> None:
        raise AssertionError


async def test_what_fails_is_started_later_each_time_until_it_is_started_otherwise(redis: Redis) -> None:
    launcher, wrong = Failing(), replace(LAUNCH, instances=1)
    reconciler = Reconciler(launcher, redis, lambda _: None)
    for _ in range(3):
        await reconciler.round([wrong])
    assert launcher.started == [wrong.spec()]
    mended = replace(wrong, path="/there")
    for _ in range(3):
        await reconciler.round([mended])
    assert launcher.started == [wrong.spec(), mended.spec()]
