"""A migrated database and a Redis client that does not decode, as billing uses them."""

from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import Engine, create_engine

from billing.migrate import upgrade


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """An engine on a fresh database at the newest schema."""
    upgrade(database_url)
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def raw_redis(valkey_url: str) -> Iterator[redis.Redis]:
    """A client that returns bytes, on the emptied Valkey."""
    with redis.Redis.from_url(valkey_url) as client:
        yield client
