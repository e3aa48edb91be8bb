"""A migrated database and a Redis client that does not decode, as billing uses them."""

from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import Engine, create_engine


@pytest.fixture(scope="session")
def engines() -> dict[str, Engine]:
    """The engines of `database` by URL. One keeps the statements that it has compiled for the next test."""
    return {}


@pytest.fixture
def database(migrated_database_url: str, engines: dict[str, Engine]) -> Iterator[Engine]:
    """An engine on a fresh database at the newest schema. It has no connection yet."""
    if (engine := engines.get(migrated_database_url)) is None:
        engine = engines[migrated_database_url] = create_engine(migrated_database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def raw_redis(valkey_url: str) -> Iterator[redis.Redis]:
    """A client that returns bytes, on the emptied Valkey."""
    with redis.Redis.from_url(valkey_url) as client:
        yield client
