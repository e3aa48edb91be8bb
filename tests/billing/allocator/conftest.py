"""A furnished cell on a real Valkey and PostgreSQL."""

import pytest
import redis
from sqlalchemy import Engine

from tests.billing.allocator.cells import Ground, open_ground


@pytest.fixture
def ground(database: Engine, raw_redis: redis.Redis, valkey: redis.Redis) -> Ground:
    """Two ready machines, calibrated; no contract yet."""
    return open_ground(database, raw_redis, valkey)
