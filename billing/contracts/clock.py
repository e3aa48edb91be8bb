"""What happens to contracts by time alone: they become active and they end. The control plane's loops call
it.
"""

from dataclasses import replace
from typing import Final

from sqlalchemy import Connection

from billing.contracts import store
from billing.contracts.terms import Contract

BY: Final = "clock"


def advance(connection: Connection, now_ms: int) -> list[Contract]:
    """Advance the states to the clock, each change in the history. Returns what changed; again at once:
    nothing.

    A contract whose whole term has passed becomes active and then ended, so that no history skips a state.
    """
    changed = []
    for contract in store.lock_due(connection, now_ms):
        now = contract
        if now.state == "signed" and now.terms.starts_ms < now.effective_end_ms:
            now = store.save(connection, replace(now, state="active"), "active", by=BY, now_ms=now_ms)
        if now.effective_end_ms <= now_ms:
            now = store.save(connection, replace(now, state="ended"), "ended", by=BY, now_ms=now_ms)
        changed.append(now)
    return changed
