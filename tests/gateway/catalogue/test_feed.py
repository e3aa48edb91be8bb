"""The view of the catalogue over a Redis that changes, or is emptied, between two of its commands."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from billing.wire import redis_keys
from gateway.catalogue.feed import Catalogue
from gateway.errors import DependencyUnavailable
from gateway.redis.pipe import RedisPipe
from tests.fixtures.gateway import MODEL
from tests.fixtures.gateway import Catalogue as Projection


class Pipe(RedisPipe):
    """It keeps what it was asked, and can have something happen before a command is sent, once."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked: list[tuple[Any, ...]] = []
        self._before: tuple[tuple[str, str], Callable[[], object]] | None = None

    def before(self, verb: str, key: str, happens: Callable[[], object]) -> None:
        self._before = (verb, key), happens

    def submit(self, *command: Any) -> "asyncio.Future[Any]":
        if self._before is not None and command[:2] == self._before[0]:
            _, happens = self._before
            self._before = None
            happens()
        self.asked.append(command)
        return super().submit(*command)

    def readings(self, key: str) -> list[tuple[Any, ...]]:
        return [command for command in self.asked if key in command]


@pytest.fixture
def projection(valkey: redis.Redis) -> Projection:
    written = Projection(valkey)
    written.model()
    return written


@pytest.fixture
async def pipe(valkey_url: str) -> AsyncIterator[Pipe]:
    pipe = Pipe(valkey_url)
    yield pipe
    await pipe.close()


@pytest.fixture
async def feed(valkey_url: str) -> AsyncIterator[Pipe]:
    pipe = Pipe(valkey_url)
    yield pipe
    await pipe.close()


@pytest.fixture
async def catalogue(projection: Projection, pipe: Pipe, feed: Pipe) -> AsyncIterator[Catalogue]:
    followed = Catalogue(pipe, feed, lambda _: None)
    yield followed
    await followed.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (nobody tells when Redis has it)
            await asyncio.sleep(0.01)


def fill_again(client: redis.Redis, *models: str) -> None:
    """As billing does: all in one transaction."""
    with client.pipeline(transaction=True) as transaction:
        written = Projection(transaction)
        for model in models:
            written.model(model)
        written.changed("all", "*")
        transaction.execute()


async def test_models_that_change_together_are_read_at_once(
    valkey: redis.Redis, catalogue: Catalogue, feed: Pipe
) -> None:
    await catalogue.start(30)
    feed.asked.clear()
    names = [f"model-{number}" for number in range(300)]
    with valkey.pipeline(transaction=True) as transaction:
        for name in names:
            Projection(transaction).model(name)
        transaction.execute()
    await until(lambda: len(catalogue.models) == 301)
    assert catalogue.models[names[0]].name == names[0]
    assert len(feed.readings(redis_keys.MODELS)) == 1


async def test_a_model_that_changes_is_read_alone_and_one_that_is_gone_is_gone(
    valkey: redis.Redis, projection: Projection, catalogue: Catalogue, feed: Pipe
) -> None:
    projection.model("other")
    projection.model("third")
    await catalogue.start(30)
    feed.asked.clear()
    projection.model("other", context_tokens=99)
    await until(lambda: catalogue.models["other"].context_tokens == 99)
    valkey.hdel(redis_keys.MODELS, "third")
    projection.changed("model", "third")
    await until(lambda: "third" not in catalogue.models)
    assert set(catalogue.models) == {MODEL, "other"}
    assert feed.readings(redis_keys.MODELS) == [
        ("HMGET", redis_keys.MODELS, b"other"), ("HMGET", redis_keys.MODELS, b"third")
    ]  # fmt: skip


async def test_a_model_that_has_changed_in_a_redis_that_is_emptied_takes_none_away(
    valkey: redis.Redis, catalogue: Catalogue
) -> None:
    await catalogue.start(30)
    with valkey.pipeline(transaction=True) as transaction:
        transaction.delete(redis_keys.PROJECTION, redis_keys.MODELS)
        transaction.xadd(redis_keys.CHANGES, {"kind": "model", "id": MODEL})
        transaction.execute()
    await until(lambda: catalogue.not_projected or not catalogue.models)
    assert set(catalogue.models) == {MODEL}
    fill_again(valkey, MODEL, "other")
    await until(lambda: "other" in catalogue.models)
    assert not catalogue.not_projected


@pytest.mark.parametrize(
    ("verb", "key"), [("HGETALL", redis_keys.MODELS), ("HGET", redis_keys.SECRETS)], ids=["models", "salt"]
)
async def test_a_redis_that_is_emptied_while_the_catalogue_is_read_takes_no_model_away(
    valkey: redis.Redis, projection: Projection, catalogue: Catalogue, feed: Pipe, verb: str, key: str
) -> None:
    await catalogue.start(30)
    feed.before(verb, key, valkey.flushall)
    projection.changed("all", "*")
    await until(lambda: catalogue.not_projected or not catalogue.models)
    assert set(catalogue.models) == {MODEL}
    fill_again(valkey, MODEL, "other")
    await until(lambda: "other" in catalogue.models)
    assert not catalogue.not_projected


async def test_a_redis_that_is_emptied_between_key_and_tenant_does_not_say_that_the_key_is_none(
    valkey: redis.Redis, projection: Projection, catalogue: Catalogue, pipe: Pipe
) -> None:
    key_hash = hashlib.sha256(projection.key(projection.tenant("ten_a")).encode()).hexdigest()
    await catalogue.start(30)
    pipe.before("GET", redis_keys.tenant("ten_a"), valkey.flushall)
    with pytest.raises(DependencyUnavailable):
        await catalogue.find_key(key_hash)


async def test_what_cannot_be_read_ends_neither_the_changes_nor_the_instances(
    valkey: redis.Redis, projection: Projection, catalogue: Catalogue, pipe: Pipe
) -> None:
    await catalogue.start(30)
    with valkey.pipeline(transaction=True) as transaction:
        transaction.set(redis_keys.INSTANCES, "no hash")
        transaction.xadd(redis_keys.CHANGES, {"kind": "tenant", "id": b"\xff"})
        transaction.execute()
    asked = len(pipe.readings(redis_keys.INSTANCES))
    await until(lambda: len(pipe.readings(redis_keys.INSTANCES)) > asked + 1)  # refused, and asked again
    valkey.delete(redis_keys.INSTANCES)
    projection.instance("http://127.0.0.1:1", None, name="late")
    projection.model("late")
    await until(lambda: "late" in catalogue.models and "late" in catalogue.instance_ids())
