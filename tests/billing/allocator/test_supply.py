"""What SQL says of all cells is asked for again only where somebody has seen that it has changed."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from sqlalchemy.event import listen, remove

from billing.allocator.supply import SupplyReader
from billing.catalogue import models
from billing.due import DueReader
from tests.billing.allocator.cells import CELL, Ground
from tests.billing.contracts.selling import T0


@pytest.fixture
def statements(database: Engine) -> Iterator[list[str]]:
    """What SQL is asked from here on."""
    asked: list[str] = []

    def hear(*seen: object) -> None:
        asked.append(str(seen[2]))

    listen(database, "before_cursor_execute", hear)
    yield asked
    remove(database, "before_cursor_execute", hear)


def test_sql_is_asked_only_for_what_the_shared_look_says_is_new(
    ground: Ground, database: Engine, statements: list[str]
) -> None:
    now_s = 100.0
    look = DueReader(database, clock=lambda: now_s)
    reader = SupplyReader(database)
    assert CELL in reader.read(T0, look.read().supply).cells
    now_s += 1
    state = look.read().supply
    statements.clear()
    supply = reader.read(T0, state)
    assert CELL in supply.cells
    assert supply.pools
    assert statements == []
    with database.begin() as connection:
        models.create(connection, models.ModelSpec(name="new", context_tokens=4096))
    now_s += 1
    assert "new" in reader.read(T0, look.read().supply).cells


def test_what_is_signed_is_read_each_time(ground: Ground, database: Engine) -> None:
    reader = SupplyReader(database)
    look = DueReader(database, clock=iter(range(100, 200)).__next__)
    before = reader.read(T0, look.read().supply)
    contract = ground.sign("acme", 100)
    after = reader.read(T0, look.read().supply)
    assert not any(pool.signed for pool in before.pools.values())
    assert [rate.contract_id for pool in after.pools.values() for rate in pool.signed] == [
        contract.contract_id
    ]
