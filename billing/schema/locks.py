"""The advisory locks of the database: numbers that no other program uses on it. The code that takes a lock
says for how long.
"""

from enum import IntEnum


class AdvisoryLock(IntEnum):
    """One number each; `IDEMPOTENCY` has a second number, from the key."""

    MIGRATIONS = 7_461_615
    # Two processes that poll at once could write an older reading over a newer one, which looks like a
    # restart: one at a time.
    ENGINE_RUNS = 7_461_616
    RECONCILIATION = 7_461_617
    # Shared by who records, exclusive for who sets a price or closes: nothing is recorded meanwhile. Not a
    # lock of the table: reports need not wait.
    PRICES = 7_461_618
    PROJECTION = 7_461_620
    # Of two models that are added to one pool at once, the second sees whose the first is.
    POOL_OWNERS = 7_461_621
    # Of two months that are closed at once, the second sees the first; no terms of makers come in between.
    BOOKS = 7_461_625
    # What one audit found is kept before what the next one found.
    FINDINGS = 7_461_624
    IDEMPOTENCY = 7_461_630
