"""Which instance serves a request. Pure: it holds nothing, so a failure leaks nothing. It is called again
after a wait or a failed attempt.

It chooses, among the ready instances that are not in `excluded`, the one with the least work that this
process and the engine know of.
"""

from collections.abc import Collection, Mapping
from typing import Final

from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from gateway.upstream.adapters import ADAPTERS
from gateway.upstream.breaker import Breakers

# The most candidates that a cell accepts.
CANDIDATES_MAX: Final = 64


def ready(instances: Collection[InstanceEntry], excluded: Collection[str] = ()) -> list[InstanceEntry]:
    """Those that may get new requests, but for those in `excluded`."""
    return [
        entry
        for entry in instances
        if entry.status is InstanceStatus.READY
        and entry.engine in ADAPTERS
        and entry.instance not in excluded
    ]


def candidates(
    instances: Collection[InstanceEntry],
    open_here: Mapping[str, int],
    breakers: Breakers,
    now: float,
) -> list[InstanceEntry]:
    """These ready instances, best first, ranked as in `route`. The cell takes the first with a free slot."""
    found = list(instances)
    if len(found) > 1:
        found.sort(key=lambda entry: _rank(entry, open_here, breakers, now))
    return found[:CANDIDATES_MAX]


def _rank(
    entry: InstanceEntry, open_here: Mapping[str, int], breakers: Breakers, now: float
) -> tuple[bool, float]:
    # The engine's own figure is up to a second old and includes our requests; the greater of the two is the
    # better estimate.
    return breakers.avoided(entry.instance, now), max(
        float(open_here.get(entry.instance, 0)), float(entry.load.running + entry.load.waiting)
    )


def route(
    instances: Collection[InstanceEntry],
    open_here: Mapping[str, int],
    breakers: Breakers,
    now: float,
    excluded: Collection[str] = (),
) -> InstanceEntry | None:
    """The instance to try, None when there is none.

    `open_here`: requests that this process has open, by instance; `breakers`: what it knows of failures.
    """
    left = breakers.usable(ready(instances, excluded), now)
    return next(iter(candidates(left, open_here, breakers, now)), None)
