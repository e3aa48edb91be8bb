"""Loops that wake together share one look at SQL, and none of them sees what was so a second ago."""

from sqlalchemy import Engine

from billing.catalogue import outbox
from billing.catalogue.outbox import ChangeKind
from billing.due import DueReader


def test_a_look_is_shared_for_a_moment_and_no_longer(database: Engine) -> None:
    now_s = 100.0
    look = DueReader(database, clock=lambda: now_s)
    first = look.read()
    assert (first.contracts, first.reclaims, first.projection.waits) == (False, False, False)
    with database.begin() as connection:
        outbox.record(connection, ChangeKind.MODEL, "m")
    now_s += 0.05
    assert look.read() is first
    now_s += 0.1
    assert look.read().projection.waits
