"""What every test of a running gateway asks at its end (docs: invariants I1-I3)."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from billing.wire import redis_keys
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, wait_until


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for callers that ask at the same time."""
    with ThreadPoolExecutor(64) as threads:
        yield threads


@pytest.fixture
def slow(engine: SimEngine) -> SimEngine:
    """The engine, with streams that last: 10 ms a token at least."""
    engine.faults("slow_drip", 10, count=None)
    return engine


@pytest.fixture
def conserved(engine: SimEngine, catalogue: Catalogue) -> Callable[[], None]:
    """Call it when all requests have ended: what the engine counted since the test began is in the events,
    and nothing is left open.
    """
    before = engine.counters()

    def check() -> None:
        wait_until(
            lambda: catalogue.redis.zcard(redis_keys.open_requests(MODEL)) == 0, "end of all reservations"
        )
        after, events = engine.counters(), catalogue.events()
        produced = (
            sum(event.produced.prompt for event in events),
            sum(event.produced.output for event in events),
        )
        counted = after["prompt"] - before["prompt"], after["generation"] - before["generation"]
        assert produced == counted, [(e.request_id, e.ending, e.produced, e.usage_source) for e in events]
        assert len({event.request_id for event in events}) == len(events)

    return check
