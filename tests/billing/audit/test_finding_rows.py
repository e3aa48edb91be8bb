"""Findings are rows: opened once when seen, closed when gone, and what a person said of them stays."""

import threading
from dataclasses import replace

import pytest
from sqlalchemy import Connection, Engine

from billing.audit import finding_rows
from billing.audit.finding_rows import FindingRow, State
from billing.findings import Finding, FindingKind
from billing.page import PageRequest
from billing.refusals import Conflict, NotFound
from billing.wire.tokens import CounterPair

RESIDUAL = Finding(
    kind=FindingKind.RESIDUAL, message="not all is explained", instance="i1", epoch="e1",
    tokens=CounterPair(0, 7),
)  # fmt: skip
CLOCKS = Finding(kind=FindingKind.CLOCKS_DIFFER, message="PostgreSQL's clock is 2.5 s ahead of Redis's")
CHAIN = Finding(kind=FindingKind.CHAIN_BROKEN, message="links are missing", count=1, ids=("ten_a 2",))
NEWS = Finding(kind=FindingKind.RECONCILED, message="absorbed", instance="i1", epoch="e1")


def rows(connection: Connection, *, gone: bool = False) -> list[FindingRow]:
    return finding_rows.list_page(connection, PageRequest(100), state=None, kind=None, gone=gone).rows


def test_what_is_seen_again_is_the_same_row_and_what_is_gone_is_closed(database: Engine) -> None:
    with database.begin() as connection:
        for clock in ("2.5", "3.1"):
            said = replace(CLOCKS, message=CLOCKS.message.replace("2.5", clock))
            finding_rows.keep(connection, [RESIDUAL, said, NEWS], facts=False)
        first = {each.kind: each for each in rows(connection)}
        assert {kind: each.state for kind, each in first.items()} == {
            "residual": State.OPEN, "clocks_differ": State.OPEN,
        }  # fmt: skip
        assert "3.1 s" in first["clocks_differ"].said["message"]
        other = replace(RESIDUAL, instance="i2")
        finding_rows.keep(connection, [RESIDUAL, other], facts=False)
        assert [each.said["instance"] for each in rows(connection)].count("i2") == 1
        assert finding_rows.count_by_state(connection) == {("residual", "open"): 2}
        finding_rows.keep(connection, [], facts=False)
        assert rows(connection) == []
        assert {each.state for each in rows(connection, gone=True)} == {State.CLOSED}
        finding_rows.keep(connection, [RESIDUAL], facts=False)
        (again,) = rows(connection)
        assert again.finding not in {each.finding for each in first.values()}


def test_an_audit_closes_only_what_it_looks_for(database: Engine) -> None:
    with database.begin() as connection:
        finding_rows.keep(connection, [CHAIN], facts=True)
        finding_rows.keep(connection, [], facts=False)
        assert len(rows(connection)) == 1
        finding_rows.keep(connection, [], facts=True)
        assert rows(connection) == []


def test_what_a_person_said_stays_until_there_is_more(database: Engine) -> None:
    with database.begin() as connection:
        finding_rows.keep(connection, [RESIDUAL], facts=False)
        (row,) = rows(connection)
        row = finding_rows.change(connection, row.finding, owner="ada")
        assert (row.state, row.owner) == (State.ACKNOWLEDGED, "ada")
        finding_rows.keep(connection, [RESIDUAL], facts=False)
        row = finding_rows.change(connection, row.finding, resolve="a test beside the gateway")
        assert (row.state, row.owner, row.reason) == (State.RESOLVED, "ada", "a test beside the gateway")
        finding_rows.keep(connection, [RESIDUAL], facts=False)
        assert rows(connection) == [row]
        finding_rows.keep(connection, [replace(RESIDUAL, tokens=CounterPair(0, 8))], facts=False)
        (more,) = rows(connection)
        assert (more.finding, more.state, more.owner) == (row.finding, State.OPEN, "ada")
        finding_rows.change(connection, row.finding, resolve="seen")
        finding_rows.keep(connection, [], facts=False)
        (gone,) = rows(connection, gone=True)
        assert (gone.state, gone.reason, gone.gone_ms is None) == (State.RESOLVED, "seen", False)
        with pytest.raises(Conflict):
            finding_rows.change(connection, row.finding, owner="bob")
        with pytest.raises(NotFound):
            finding_rows.change(connection, "fnd_0", owner="bob")


def test_two_audits_at_once_open_one_row(database: Engine) -> None:
    failures: list[BaseException] = []

    def keep() -> None:
        try:
            with database.begin() as connection:
                finding_rows.keep(connection, [RESIDUAL], facts=False)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=keep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert failures == []
    with database.connect() as connection:
        assert len(rows(connection)) == 1
