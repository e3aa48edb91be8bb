"""A migrated database and a Redis client that does not decode, as billing uses them."""

from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import Engine, create_engine


@pytest.fixture
def database(migrated_database_url: str) -> Iterator[Engine]:
    """An engine on a fresh database at the newest schema."""
    engine = create_engine(migrated_database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def raw_redis(valkey_url: str) -> Iterator[redis.Redis]:
    """A client that returns bytes, on the emptied Valkey."""
    with redis.Redis.from_url(valkey_url) as client:
        yield client
