"""Checkpoints of chains: one for each day that is over, signed, and never changed."""

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select, text, update
from sqlalchemy.exc import DatabaseError

from billing.accounts import audit_log
from billing.findings import FindingKind
from billing.ledger.chain import ENTRY_COLUMNS, HOUSE, add_links, lock_heads, read_entries, stored_entry
from billing.ledger.chain_check import check_chains
from billing.ledger.checkpoints import (
    AUDIT_LOG,
    check_checkpoints,
    end_days,
    list_checkpoints,
    newest,
    sign_days,
)
from billing.moments import DAY_MS
from billing.page import PageRequest
from billing.schema import accounts
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
    (row,) = read_entries(connection, select(*ENTRY_COLUMNS).where(same))
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


def log_at(connection: Connection, moment_ms: int) -> None:
    """An entry of the audit log, as of that moment."""
    connection.execute(text("select audit_append('tenant', 'ten_x', null, null, '{}')"))
    head = audit_log.head(connection)
    of = accounts.audit_log.c
    connection.execute(text("set local session_replication_role = replica"))
    connection.execute(update(accounts.audit_log).where(of.entry == head.entry).values(at_ms=moment_ms))
    row = connection.execute(select(*audit_log.TEXTS).where(of.entry == head.entry)).one()
    made = audit_log.hash_of(row)
    connection.execute(update(accounts.audit_log).where(of.entry == head.entry).values(hash=made))
    connection.execute(update(accounts.audit_head).values(hash=made))
    connection.execute(text("set local session_replication_role = origin"))


def test_the_audit_log_cannot_be_rewritten_before_the_last_day_that_was_signed(database: Engine) -> None:
    with database.begin() as connection:
        today_ms = database_now_ms(connection) // DAY_MS * DAY_MS
        for moment_ms in (today_ms - DAY_MS - 1, today_ms - 5, today_ms):
            log_at(connection, moment_ms)
            end_days(connection)
        end_days(connection)
        assert sign_days(connection, KEY) == 2
        rows = list_checkpoints(connection, AUDIT_LOG, DAYS).rows
        assert [each.position for each in rows] == [2, 1]
        assert newest(connection)[AUDIT_LOG] == rows[0]
        assert (audit_log.check(connection), check_checkpoints(connection, KEY.public_key())) == ([], [])
        signed = audit_log.Head(rows[0].position, rows[0].hash)
        assert audit_log.check(connection, signed) == []
        # All of it anew, with right hashes: whoever owns the database can do that.
        connection.execute(text("set local session_replication_role = replica"))
        connection.execute(text("delete from audit_log"))
        connection.execute(text("update audit_head set entry = 0, hash = repeat('0', 64)"))
        connection.execute(text("set local session_replication_role = origin"))
        for moment_ms in (today_ms - DAY_MS - 1, today_ms - 6, today_ms):
            log_at(connection, moment_ms)
        assert audit_log.check(connection) == []
        for only_newest in (True, False):
            (finding,) = check_checkpoints(connection, KEY.public_key(), only_newest=only_newest)
            assert (finding.kind, finding.ids[0]) == (FindingKind.AUDIT_LOG_DIFFERS, rows[0].day)
        assert len(audit_log.check(connection, signed)) == 1


def test_what_was_added_since_the_checkpoint_is_checked_without_reading_the_rest(
    database: Engine, days: list[str]
) -> None:
    with database.begin() as connection:
        signed = {chain: (each.position, each.hash) for chain, each in newest(connection).items()}
        chain_at(connection, "later", database_now_ms(connection))
        report = check_chains(connection, signed)
        # A tenant without a checkpoint is read from its beginning.
        assert (report.links, report.findings()) == (2, [])
        assert check_chains(connection, report.upto).links == 0
        assert check_chains(connection, most=3).links >= 3
        connection.execute(text("set local session_replication_role = replica"))
        change = "update ledger_transaction set recorded_ms = 5 where subject = :subject"
        connection.execute(text(change), {"subject": "g0"})
        assert check_chains(connection, signed).findings() == []
        assert [finding.count for finding in check_chains(connection).findings()] == [1]
        connection.execute(text(change), {"subject": "later"})
        (finding,) = check_chains(connection, signed).findings()
        assert "later" in finding.ids[0]
        connection.execute(text("delete from usage_chain where chain = '' and position > 3"))
        (finding,) = check_chains(connection, signed).findings()
        assert "do not end where they ended" in finding.message
