"""What every test of a running gateway asks at its end (docs: invariants I1-I3)."""

from collections.abc import Callable

import pytest

from billing import redis_keys
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, wait_until


@pytest.fixture
def conserved(engine: SimEngine, catalogue: Catalogue) -> Callable[[], None]:
    """Call it when all requests have ended: what the engine counted since the test began is in the events, and nothing is left open."""
    before = engine.counters()

    def check() -> None:
        wait_until(lambda: catalogue.redis.zcard(redis_keys.open_requests(MODEL)) == 0, "end of all reservations")
        after, events = engine.counters(), catalogue.events()
        produced = sum(event.produced.prompt for event in events), sum(event.produced.output for event in events)
        counted = after["prompt"] - before["prompt"], after["generation"] - before["generation"]
        assert produced == counted, [(e.request_id, e.ending, e.produced, e.usage_source) for e in events]
        assert len({event.request_id for event in events}) == len(events)

    return check
