"""The balance of each engine is a row for each minute in which anything moved, over restarts, and its
residual is 0 at each moment whichever minutes a request spans.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine

from billing.audit.balance import EpochBalance, Metered
from billing.audit.balance_rows import BalanceRow, EngineState, keep, list_page, residual_since_ms, thin_out
from billing.page import PageRequest
from billing.wire.tokens import CounterPair

HOUR = 500_000
READ = EngineState(run=0, counters="read")
MINUTE_MS = 60_000


@pytest.fixture
def connection(database: Engine) -> Iterator[Connection]:
    with database.connect() as made:
        yield made


def note(
    connection: Connection,
    minute: int,
    produced: int,
    billed: int = 0,
    opened: int = 0,
    *,
    epoch: str = "e1",
    state: EngineState = READ,
    second: int = 0,
) -> None:
    """A reading in this minute of the hour: of output, of which as much is open as is said."""
    balance = EpochBalance(
        instance="i1",
        epoch=epoch,
        produced=CounterPair(0, produced),
        metered=Metered(CounterPair(0, billed), CounterPair(), CounterPair(0, opened)),
    )
    at_ms = (HOUR * 60 + minute) * MINUTE_MS + second * 1000
    keep(connection, at_ms, [balance], {("i1", epoch): state})


def rows(connection: Connection, **asked: object) -> list[BalanceRow]:
    wanted = {"instance": None, "from_ms": None, "until_ms": None, "residual": False} | asked
    return list_page(connection, PageRequest(100), **wanted).rows[::-1]  # type: ignore[arg-type]


def spans(found: list[BalanceRow]) -> list[tuple[int, int]]:
    return [(row.minute - HOUR * 60, row.until - HOUR * 60) for row in found]


def test_a_request_that_spans_minutes_is_open_until_it_is_billed_and_leaves_no_residual(
    connection: Connection,
) -> None:
    note(connection, 1, 30, opened=30)
    note(connection, 1, 70, opened=70, second=30)
    note(connection, 2, 100, opened=100)
    note(connection, 3, 100, billed=100)
    found = rows(connection)
    assert [(row.added["produced"].generation, row.added["billed"].generation) for row in found] == [
        (70, 0), (30, 0), (0, 100),
    ]  # fmt: skip
    assert [row.metered.open.generation for row in found] == [70, 100, 0]
    assert {row.residual for row in found} == {CounterPair()}


def test_while_nothing_moves_one_row_holds_until_the_hour_ends(connection: Connection) -> None:
    for minute in (1, 2, 3, 59, 60, 61):
        note(connection, minute, 5, 5)
    found = rows(connection)
    # Nobody looked from the fourth minute to the fifty-ninth.
    assert spans(found) == [(1, 3), (59, 59), (60, 61)]
    begins_ms = (HOUR * 60 + 2) * MINUTE_MS
    assert spans(rows(connection, from_ms=begins_ms, until_ms=begins_ms + 1)) == [(1, 3)]
    assert rows(connection, from_ms=begins_ms + 2 * MINUTE_MS, until_ms=begins_ms + 3 * MINUTE_MS) == []


def test_a_restart_is_another_run_and_another_epoch_begins_anew(connection: Connection) -> None:
    note(connection, 1, 10, 10)
    note(connection, 2, 12, 12, state=EngineState(run=1, counters="read"))
    note(connection, 3, 12, 12, state=EngineState(run=1, counters="silent"))
    note(connection, 4, 12, 12, state=EngineState(run=1, counters="ended"))
    note(connection, 4, 3, 3, epoch="e2")
    # What has ended is not noted again, unless its balance moves.
    note(connection, 5, 12, 12, state=EngineState(run=1, counters="ended"))
    note(connection, 6, 13, 12, state=EngineState(run=1, counters="ended"))
    note(connection, 6, 0, 0, epoch="e0", state=EngineState(run=0, counters="ended"))
    first = [row for row in rows(connection) if row.epoch == "e1"]
    assert [(row.state.run, row.state.counters, row.residual.generation) for row in first] == [
        (0, "read", 0), (1, "read", 0), (1, "silent", 0), (1, "ended", 0), (1, "ended", 1),
    ]  # fmt: skip
    (second,) = (row for row in rows(connection) if row.epoch == "e2")
    assert second.added["produced"] == CounterPair(0, 3)
    assert [row.residual.generation for row in rows(connection, residual=True)] == [1]


def test_fault_40_a_clock_that_goes_back_adds_to_the_minute_that_was_last(connection: Connection) -> None:
    note(connection, 30, 10, 10)
    note(connection, -30, 11, 11)
    note(connection, 31, 12, 12)
    found = rows(connection)
    assert spans(found) == [(30, 30), (31, 31)]
    assert [row.produced.generation for row in found] == [11, 12]
    assert sum(row.added["produced"].generation for row in found) == 12


def test_a_residual_is_there_since_the_minute_in_which_it_came(connection: Connection) -> None:
    assert residual_since_ms(connection, "i1", "e1") is None
    for minute, billed in ((1, 10), (2, 9), (3, 10), (4, 10), (5, 8), (6, 7), (7, 7)):
        note(connection, minute, 10, billed)
    assert residual_since_ms(connection, "i1", "e1") == (HOUR * 60 + 5) * MINUTE_MS
    note(connection, 8, 10, 10)
    assert residual_since_ms(connection, "i1", "e1") is None


def test_old_hours_keep_their_last_row_and_each_change_of_the_residual(connection: Connection) -> None:
    for minute, billed in enumerate((0, 1, 2, 2, 4, 5, 6, 7)):
        note(connection, minute, minute, billed)
    note(connection, 60, 9, 9)
    later_ms = (HOUR * 60 + 120 + 14 * 24 * 60) * MINUTE_MS
    assert thin_out(connection, later_ms - 120 * MINUTE_MS) == 0
    before = spans(rows(connection, residual=True))
    assert thin_out(connection, later_ms) == 4
    assert spans(rows(connection)) == [(0, 0), (3, 3), (4, 4), (7, 7), (60, 60)]
    assert spans(rows(connection, residual=True)) == before == [(3, 3)]
    assert thin_out(connection, later_ms) == 0
    assert thin_out(connection, later_ms + 400 * 24 * 60 * MINUTE_MS) == 5
