"""A gateway that listens, and an instance that is full, for the tests of a cell."""

from collections.abc import Iterator

import pytest
import redis

from billing.cell.replies import Reserved
from tests.billing.cell.plan import Listener, set_room
from tests.billing.cell.requests import CellRequest


@pytest.fixture
def gateway(valkey: redis.Redis) -> Iterator[Listener]:
    """Hears what is granted to `gw-1`."""
    with Listener(valkey, "gw-1") as listener:
        yield listener


@pytest.fixture
def full(valkey: redis.Redis, gateway: Listener) -> CellRequest:
    """Room for one sequence, which this request has; `gw-1` listens."""
    set_room(valkey, {"i-1": (1, 1)})
    holder = CellRequest(client=valkey, request_id="holder", tenant="holder")
    assert isinstance(holder.reserve(), Reserved)
    return holder
