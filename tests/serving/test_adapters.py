"""A worker's engine has the adapters that the catalogue wants, and its entry says which it has."""

import json
from pathlib import Path

import pytest
from redis.asyncio import Redis

import serving.adapters
from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from serving.vllm_command import AdapterSlots
from tests.fixtures.lora import parts, write_adapter, write_tensors
from tests.serving.conftest import Workers, WorkerUnderTest, eventually

LAYER = "model.layers.0.self_attn.q_proj"
READY = InstanceStatus.READY
TWO = AdapterSlots(count=2, rank_max=8)


@pytest.fixture
def folder(workers: Workers) -> Path:
    """Where adapters of the worker's model are."""
    model = workers.folder / "model"
    model.mkdir()
    write_tensors(model / "model.safetensors", {f"{LAYER}.weight": (6, 4)})
    return workers.folder


def adapter(folder: Path, name: str, *, out: int = 6, alpha: int = 16) -> str:
    shapes = parts(LAYER, rank=8, out=out, inside=4)
    return str(write_adapter(folder / name, shapes, lora_alpha=alpha))


async def want(redis: Redis, wanted: dict[str, str]) -> None:
    await redis.hset(redis_keys.MODELS, "m", json.dumps({"name": "m", "adapters": wanted}))


async def test_what_is_wanted_is_loaded_and_what_is_retired_is_dropped(
    workers: Workers, redis: Redis, folder: Path
) -> None:
    worker = workers.make(adapters=TWO)
    await want(redis, {"m:a": adapter(folder, "a")})
    worker.start()
    entry = await eventually(lambda: _entry_with(worker, {"m:a"}))
    assert entry.adapters["m:a"].startswith("m:a@")
    assert await worker.adapters() == {entry.adapters["m:a"]: str(folder / "a")}
    await want(redis, {"m:b": adapter(folder, "b")})
    entry = await eventually(lambda: _entry_with(worker, {"m:b"}))
    await eventually(lambda: _has(worker, {entry.adapters["m:b"]: str(folder / "b")}))
    await redis.delete(redis_keys.MODELS)  # an emptied Redis wants nothing else
    await worker.tell(running=1)
    loaded = await eventually(lambda: _loaded(worker))
    assert set(loaded.adapters) == {"m:b"}


async def test_other_weights_under_the_same_name_have_another_name_at_the_engine(
    workers: Workers, redis: Redis, folder: Path
) -> None:
    """Its prefix cache goes by that name."""
    worker = workers.make(adapters=TWO)
    await want(redis, {"m:a": adapter(folder, "a")})
    worker.start()
    first = await eventually(lambda: _entry_with(worker, {"m:a"}))
    await want(redis, {})
    await eventually(lambda: _entry_with(worker, set()))
    await want(redis, {"m:a": adapter(folder, "a", alpha=8)})
    second = await eventually(lambda: _entry_with(worker, {"m:a"}))
    assert first.adapters != second.adapters


async def test_a_new_engine_has_none_until_it_has_loaded_them(
    workers: Workers, redis: Redis, folder: Path
) -> None:
    worker = workers.make(adapters=TWO)
    await want(redis, {"m:a": adapter(folder, "a")})
    worker.start()
    first = await eventually(lambda: _entry_with(worker, {"m:a"}))
    await worker.tell(do="die")
    starting = await worker.entry_with(InstanceStatus.STARTING)
    assert starting.adapters == {}
    second = await eventually(lambda: _entry_with(worker, {"m:a"}))
    assert second.epoch != first.epoch
    assert set(await worker.adapters()) == set(second.adapters.values())


async def test_one_that_does_not_fit_is_refused_by_name_and_what_serves_goes_on(
    workers: Workers, redis: Redis, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.adapters, "RETRY_S", 0.1)
    worker = workers.make(adapters=TWO)
    await want(redis, {"m:a": adapter(folder, "a"), "m:b": adapter(folder, "b", out=7)})
    worker.start()
    entry = await eventually(lambda: _refusing(worker, {"m:b"}))
    assert "of another base" in entry.refused_adapters["m:b"]
    entry = await eventually(lambda: _entry_with(worker, {"m:a"}))
    assert entry.status is READY
    adapter(folder, "b")
    corrected = await eventually(lambda: _entry_with(worker, {"m:a", "m:b"}))
    assert corrected.refused_adapters == {}
    await want(redis, {"m:a": str(folder / "a"), "m:b": str(folder / "b"), "m:c": adapter(folder, "c")})
    full = await eventually(lambda: _refusing(worker, {"m:c"}))
    assert "has its 2 adapters" in full.refused_adapters["m:c"]
    await want(redis, {"m:a": str(folder / "a"), "m:c": str(folder / "c")})
    room = await eventually(lambda: _entry_with(worker, {"m:a", "m:c"}))
    assert room.refused_adapters == {}


async def test_a_worker_without_room_for_adapters_says_so(
    workers: Workers, redis: Redis, folder: Path
) -> None:
    worker = workers.make()
    await want(redis, {"m:a": adapter(folder, "a")})
    worker.start()
    entry = await eventually(lambda: _refusing(worker, {"m:a"}))
    assert entry.refused_adapters["m:a"] == (
        "this worker takes no adapters: start it with --adapters N (TAAS_ADAPTERS)"
    )
    assert await worker.adapters() == {}
    await want(redis, {})
    await eventually(lambda: _refusing(worker, set()))


async def _entry_with(worker: WorkerUnderTest, adapters: set[str]) -> InstanceEntry | None:
    entry = await worker.entry()
    return entry if entry is not None and set(entry.adapters) == adapters else None


async def _refusing(worker: WorkerUnderTest, names: set[str]) -> InstanceEntry | None:
    entry = await worker.entry()
    return entry if entry is not None and set(entry.refused_adapters) == names else None


async def _has(worker: WorkerUnderTest, adapters: dict[str, str]) -> bool:
    return await worker.adapters() == adapters


async def _loaded(worker: WorkerUnderTest) -> InstanceEntry | None:
    entry = await worker.entry()
    return entry if entry is not None and entry.load.running == 1 else None
