"""Which instances are alive, even if Redis's clock has jumped. Pure: the reader brings entries and the time,
and asks often.

A lease is a moment of Redis's clock, and that clock may jump, as at a failover to another machine. Then all
leases seem to have passed at once, or hold for as long as the clock went back. So leases are also checked
against this process's own monotonic clock: a lease that was renewed a moment ago holds, and one that has not
been renewed for longer than any lease lasts does not.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from billing.wire.instance_entry import InstanceEntry

# A worker renews its lease of 3 s or more every second. This is less than the lease, so that a dead worker is
# not trusted for longer than its lease.
_RENEWED_LATELY_S: Final = 2.5
# An instance that was removed by hand is shown for ten minutes, while it drains.
_LONGEST_LEASE_S: Final = 605.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """A lease, since when it has been unchanged, and whether it was renewed then."""

    until_ms: int
    since_s: float
    renewed: bool


class LeaseWatch:
    """One per reader, for all entries. Not for two threads at once."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def holds(self, entry: InstanceEntry, now_ms: int) -> bool:
        """Whether the lease of an entry holds. `now_ms` is Redis's clock as of the reading. An entry that is
        seen for the first time is judged by that alone.
        """
        if entry.lease_until_ms == 0:
            return True
        now_s = self._clock()
        seen = self._seen.get(entry.instance)
        if seen is None or seen.until_ms != entry.lease_until_ms:
            seen = self._seen[entry.instance] = _Seen(entry.lease_until_ms, now_s, renewed=seen is not None)
        unchanged_s = now_s - seen.since_s
        if entry.is_live(now_ms):
            return unchanged_s <= _LONGEST_LEASE_S
        return seen.renewed and unchanged_s < _RENEWED_LATELY_S
