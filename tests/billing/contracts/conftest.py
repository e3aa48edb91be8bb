"""A furnished shop in one transaction that is never committed, and the same on an engine of its own."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine

from tests.billing.contracts.selling import Shop, furnish


@pytest.fixture
def connection(database: Engine) -> Iterator[Connection]:
    """One transaction."""
    with database.begin() as opened:
        yield opened


@pytest.fixture
def shop(connection: Connection) -> Shop:
    """Two instances of 1,000 units per second each, without headroom."""
    return furnish(connection)
