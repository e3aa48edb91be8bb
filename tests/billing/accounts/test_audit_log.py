"""The audit log: each change is an entry, in the change's own transaction, and what is altered afterwards is
found by its number.
"""

import re
import threading
from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import Connection, Engine, insert, text, update
from sqlalchemy.exc import IntegrityError

from billing.accounts import audit_log
from billing.accounts.audit_log import Act, Entry, Wanted
from billing.accounts.roles import Role
from billing.catalogue import api_keys, budgets, tenants
from billing.catalogue.budget_periods import Per
from billing.catalogue.budgets import Whose
from billing.catalogue.money import Money
from billing.page import PageRequest
from billing.schema import accounts
from billing.schema.catalogue import instance

ACT = Act(actor="adm_1", role=Role.OPERATOR, action="POST /admin/v1/tenants", request_id="adm_r", why="é")
HEAVIER = (
    update(tenants.table)
    .where(tenants.table.c.name == "acme")
    .values(weight=tenants.table.c.weight % 1000 + 1)
)
# What no operator changes: what requests and machines leave, what other tables say already, and batches,
# which are their tenants' own. A new table is either audited (`audit_table`) or here.
NOT_AUDITED = {
    "audit_log", "audit_head", "usage_event", "usage_total", "usage_hour", "usage_day", "summed_day",
    "usage_rejected", "usage_conflict", "usage_chain", "finding", "engine_balance", "provider_count",
    "usage_chain_head", "usage_checkpoint", "usage_unchained",
    "ledger_transaction", "ledger_posting", "engine_counter", "request_difference", "reconciled_request",
    "line_bill", "budget_spent", "api_key_use", "projection_outbox", "projection_state",
    "idempotent_request", "pool_past", "contract_history", "contract_hour", "contract_minute",
    "contract_shortfall", "reclaim_history", "document_series", "invoiced", "late_transaction", "credit_use",
    "sink_position", "sink_skipped",
    "dropped_event", "dropped_total", "batch_file", "batch", "batch_line", "batch_part", "batch_runner",
}  # fmt: skip


def entries(connection: Connection) -> list[Entry]:
    return audit_log.list_page(connection, PageRequest(1000), Wanted()).rows[::-1]


@pytest.fixture
def three(database: Engine) -> Iterator[Connection]:
    """A log of three entries, in a transaction in which its triggers do not hold."""
    with database.begin() as connection:
        audit_log.sign(connection, ACT)
        acme = tenants.create(connection, "acme")
    with database.begin() as connection:
        audit_log.sign(connection, ACT)
        tenants.change(connection, acme.tenant_id, weight=2)
    with database.connect() as connection:
        connection.execute(text("set session_replication_role = replica"))
        assert audit_log.check(connection) == []
        yield connection


def test_every_table_is_audited_or_said_not_to_be(database: Engine) -> None:
    with database.connect() as connection:
        query = "select tgrelid::regclass::text from pg_trigger where tgname = 'audited'"
        audited = set(connection.execute(text(query)).scalars())
        tables = "select tablename from pg_tables where schemaname = 'public' and tablename !~ '_d[0-9]+$'"
        known = set(connection.execute(text(tables)).scalars())
    assert audited | NOT_AUDITED | {"alembic_version"} == known
    assert not audited & NOT_AUDITED


def test_every_audited_column_that_sounds_like_a_secret_is_hidden(database: Engine) -> None:
    query = """
      select c.relname, a.attname, t.tgargs from pg_trigger t join pg_class c on c.oid = t.tgrelid
      join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      where t.tgname = 'audited'
    """
    shown, hidden = [], set()
    with database.connect() as connection:
        for table, column, arguments in connection.execute(text(query)):
            _, secret, left_out, *_ = (each.decode() for each in bytes(arguments).split(b"\0"))
            if column in secret.split(","):
                hidden.add(column)
            elif re.search("secret|hash|password|(engine|private)_key", column):
                shown += [] if column in left_out.split(",") else [f"{table}.{column}"]
    assert shown == []
    assert hidden >= {"hash", "secret", "engine_key"}


def test_a_change_is_an_entry_with_who_what_and_why(three: Connection) -> None:
    made, project, changed = entries(three)
    assert [each.entry for each in (made, project, changed)] == [1, 2, 3]
    assert [each.kind for each in (made, project, changed)] == ["tenant", "project", "tenant"]
    assert (changed.actor, changed.role, changed.action) == ("adm_1", "operator", "POST /admin/v1/tenants")
    assert (changed.request_id, changed.why) == ("adm_r", "é")
    assert made.before is None
    assert made.after is not None
    assert made.after["name"] == "acme"
    assert (changed.subject, changed.tenant_id) == (made.subject, made.subject)
    assert (changed.before, changed.after) == ({"weight": 1}, {"weight": 2})


def test_a_change_beside_the_api_names_the_connection(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("set local application_name = 'psql'"))
        tenants.create(connection, "acme")
    with database.connect() as connection:
        first = entries(connection)[0]
    assert (first.actor, first.role, first.action) == ("database:postgres/psql", None, None)


def test_what_is_rolled_back_or_changes_nothing_is_no_entry(database: Engine) -> None:
    with database.connect() as connection:
        tenants.create(connection, "acme")
        connection.rollback()
    with database.begin() as connection:
        made = tenants.create(connection, "bolt")
    with database.begin() as connection:
        tenants.change(connection, "bolt", weight=1)
    with database.connect() as connection:
        assert [each.entry for each in entries(connection)] == [1, 2]
        assert entries(connection)[0].subject == made.tenant_id


def test_no_secret_is_in_an_entry_and_that_it_changed_is(database: Engine) -> None:
    with database.begin() as connection:
        acme = tenants.create(connection, "acme").tenant_id
        made = api_keys.create(connection, acme)
        whose = Whose(acme, None, made.key.key_id)
        budgets.put(connection, whose, Per.DAY, Money(10**30), None, 1_800_000_000_000)
    with database.begin() as connection:
        connection.execute(update(api_keys.table).values(hash="0" * 64))
    with database.connect() as connection:
        *_, key, budget, changed = entries(connection)
    assert made.key.hash not in str(key)
    assert (key.after or {})["hash"] == "(hidden)"
    assert (changed.before, changed.after) == ({"hash": "(hidden)"}, {"hash": "(hidden)"})
    assert (budget.after or {})["amount_picousd"] == "1" + "0" * 30
    assert "engine_key" in instance.c


def test_nobody_changes_an_entry(database: Engine) -> None:
    with database.begin() as connection:
        tenants.create(connection, "acme")
    for statement in ("update audit_log set why = 'x'", "delete from audit_log", "truncate audit_log"):
        with pytest.raises(IntegrityError, match="append-only"), database.begin() as connection:
            connection.execute(text(statement))


@pytest.mark.parametrize("column", [column.name for column in accounts.audit_log.c])
def test_an_entry_of_which_anything_was_altered_is_found_by_its_number(
    three: Connection, column: str
) -> None:
    altered = {"entry": 99, "at_ms": 1, "before": {"weight": 3}, "after": {"weight": 3}}.get(column, "x")
    table = accounts.audit_log
    three.execute(update(table).where(table.c.entry == 3).values({column: altered}))
    (finding,) = audit_log.check(three)
    named = "entry 99" if column == "entry" else "entry 3"
    assert any(said.startswith(f"{named}:") for said in finding.ids), finding.ids


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_entry_that_was_taken_out_is_missed_by_its_number(three: Connection, number: int) -> None:
    three.execute(text("delete from audit_log where entry = :number"), {"number": number})
    (finding,) = audit_log.check(three)
    assert any(f"entry {number}" in said for said in finding.ids), finding.ids


def test_an_entry_that_was_written_anew_with_its_hash_is_found_by_the_next(three: Connection) -> None:
    """Its own hash is right."""
    three.execute(
        text("update audit_head set entry = 1, hash = (select hash from audit_log where entry = 1)")
    )
    three.execute(text("create temporary table kept as select * from audit_log"))
    three.execute(text("delete from audit_log where entry > 1"))
    three.execute(text("select audit_append('tenant', 'another', null, null, '{}')"))
    three.execute(text("insert into audit_log select * from kept where entry = 3"))
    three.execute(text("update audit_head set entry = 3, hash = (select hash from kept where entry = 3)"))
    (finding,) = audit_log.check(three)
    assert list(finding.ids) == ["entry 3: the one before it was changed"]


def test_writers_at_once_make_one_chain_and_never_wait_for_each_other_in_a_circle(database: Engine) -> None:
    """Half of them make a row and then change one that all change, half the other way round: with the head
    locked at the first change, not at the end, this would be a deadlock.
    """
    with database.begin() as connection:
        tenants.create(connection, "acme")
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(10):
                with database.begin() as connection:
                    audit_log.sign(connection, ACT)
                    steps = [
                        partial(tenants.create, connection, f"t{number}-{turn}"),
                        partial(connection.execute, HEAVIER),
                    ]
                    for step in steps if number % 2 else reversed(steps):
                        step()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    with database.connect() as connection:
        assert audit_log.check(connection) == []
        assert len(entries(connection)) == 2 + 8 * 10 * 3


def test_entries_are_paged_and_filtered(database: Engine) -> None:
    with database.begin() as connection:
        audit_log.sign(connection, ACT)
        acme = tenants.create(connection, "acme")
    with database.begin() as connection:
        tenants.create(connection, "bolt")
    with database.connect() as connection:

        def found(**wanted: object) -> list[int]:
            page = audit_log.list_page(connection, PageRequest(3), Wanted(**wanted))  # type: ignore[arg-type]
            return [each.entry for each in page.rows]

        assert found() == [4, 3, 2]
        first = audit_log.list_page(connection, PageRequest(3), Wanted())
        rest = audit_log.list_page(connection, PageRequest(3, first.next), Wanted())
        assert ([each.entry for each in rest.rows], rest.next) == ([1], None)
        assert found(actor="adm_1") == [2, 1]
        assert found(action="post") == [2, 1]
        assert found(kind="tenant") == [3, 1]
        assert found(subject=acme.tenant_id) == [1]
        assert found(tenant_id=acme.tenant_id) == [2, 1]
        moment = entries(connection)[2].at_ms
        assert found(since_ms=moment) == [4, 3]
        assert found(until_ms=entries(connection)[0].at_ms) == []


def test_what_changes_no_row_is_appended(database: Engine) -> None:
    with database.begin() as connection:
        audit_log.sign(connection, ACT)
        audit_log.append(connection, "request", "req_1", {"stopped": True}, tenant_id="ten_1")
    with database.connect() as connection:
        (entry,) = entries(connection)
        assert (entry.kind, entry.subject, entry.tenant_id) == ("request", "req_1", "ten_1")
        assert (entry.before, entry.after, entry.actor) == (None, {"stopped": True}, "adm_1")
        assert audit_log.check(connection) == []


def test_a_role_that_is_none_is_refused_by_the_database(database: Engine) -> None:
    for role, tenant_id in (("admin", None), ("operator", "ten_1"), ("root", None)):
        row = {"key_id": "k", "hash": "h", "display": "d", "role": role, "tenant_id": tenant_id}
        with pytest.raises(IntegrityError, match="ck_admin_key_role"), database.begin() as connection:
            connection.execute(insert(accounts.admin_key).values(row))
