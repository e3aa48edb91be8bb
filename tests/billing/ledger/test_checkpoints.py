"""Checkpoints of chains: one for each day that is over, signed, and never changed."""

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import DatabaseError

from billing.ledger.chain import ENTRIES, ENTRY_COLUMNS, HOUSE, add_links, lock_heads, stored_entry
from billing.ledger.chain_check import check_chains
from billing.ledger.checkpoints import (
    DAY_MS,
    check_checkpoints,
    end_days,
    list_checkpoints,
    sign_days,
)
from billing.page import PageRequest
from billing.schema.clock import database_now_ms
from billing.schema.ledger import ledger_transaction
from billing.wire.evidence import make_key, read_private_key
from tests.billing.events import event
from tests.billing.ledger.test_chain import record

KEY = read_private_key(make_key())
DAYS = PageRequest(100)


def chain_at(connection: Connection, subject: str, moment_ms: int) -> None:
    """As an entry that was recorded and chained at that moment."""
    made = connection.execute(
        text(
            "insert into ledger_transaction (kind, subject, recorded_ms, chained) "
            "values ('grant', :subject, :moment_ms, true) returning transaction_id"
        ),
        {"subject": subject, "moment_ms": moment_ms},
    ).scalar_one()
    same = ledger_transaction.c.transaction_id == made
    row = connection.execute(select(*ENTRY_COLUMNS).select_from(ENTRIES).where(same)).mappings().one()
    add_links(connection, lock_heads(connection, [HOUSE]), [stored_entry(row, "")])


@pytest.fixture
def days(database: Engine) -> list[str]:
    """Links of three days before today, of which the second has none, and one link of today."""
    with database.begin() as connection:
        today_ms = database_now_ms(connection) // DAY_MS * DAY_MS
        for number, after_ms in enumerate((-3 * DAY_MS, -2 * DAY_MS - 1, -DAY_MS, -1)):
            chain_at(connection, f"g{number}", today_ms + after_ms)
        record(connection, event("a1"))
        end_days(connection)
        assert sign_days(connection, KEY) == 2
    with database.connect() as connection:
        rows = list_checkpoints(connection, HOUSE, DAYS).rows
    return [str(each.day) for each in rows]


def test_each_day_that_is_over_has_one(database: Engine, days: list[str]) -> None:
    with database.begin() as connection:
        rows = list_checkpoints(connection, HOUSE, DAYS).rows
        assert [each.position for each in rows] == [4, 2]
        assert days[0] > days[1]
        assert list_checkpoints(connection, "ten_a", DAYS).rows == []
        end_days(connection)
        assert sign_days(connection, KEY) == 0
        chain_at(connection, "g9", database_now_ms(connection))
        assert list_checkpoints(connection, HOUSE, DAYS).rows == rows
        assert check_checkpoints(connection, KEY.public_key()) == []
        assert check_chains(connection).findings() == []


def test_the_first_link_of_a_day_ends_the_one_before(database: Engine) -> None:
    with database.begin() as connection:
        for number in range(3):
            chain_at(connection, f"g{number}", number * DAY_MS)
        sign_days(connection, KEY)
        rows = list_checkpoints(connection, HOUSE, DAYS).rows
        assert [(each.day, each.position) for each in rows] == [("1970-01-02", 2), ("1970-01-01", 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("update usage_checkpoint set signature = 'AAAA' where position = 2", "not as they were signed"),
        ("update usage_checkpoint set day = '2020-01-01' where position = 2", "not as they were signed"),
        ("update usage_chain set hash = sha256('x') where position = 2", "does not have the link any more"),
        ("delete from usage_chain where position = 2", "does not have the link any more"),
    ],
)
def test_a_changed_checkpoint_is_named(database: Engine, days: list[str], change: str, message: str) -> None:
    with pytest.raises(DatabaseError, match="append-only"), database.begin() as connection:
        connection.execute(text(change))
    with database.begin() as connection:
        connection.execute(text("set local session_replication_role = replica"))
        connection.execute(text(change))
    with database.connect() as connection:
        (finding,) = check_checkpoints(connection, KEY.public_key())
        other: list[Any] = check_checkpoints(connection, read_private_key(make_key()).public_key())
    assert message in finding.message
    assert finding.ids in {(f"(no tenant) {days[1]}",), ("(no tenant) 2020-01-01",)}
    assert ("signed" in message) == (other == [])
