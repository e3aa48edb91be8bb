"""What Redis has lost of levels is counted anew from the ledger: as a bucket would stand had it been
charged all along.
"""

import logging
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from billing.allocator import rebuild
from billing.catalogue import limits, tenants
from billing.catalogue.limits import Subject
from billing.cell.replies import LimitReached, Rebuilding, Reserved
from billing.cell.scripts import Tier
from billing.usage.consumer import Consumer
from billing.wire import redis_keys
from billing.wire.ending import BILLED_ENDINGS, CHARGED_UNBILLED, Ending
from billing.wire.limits import DAY_S, FIELDS, MINUTE_S, LimitField, LimitKind, Limits
from billing.wire.usage_event import CapacityClass, UsageEvent
from tests.billing.allocator.cells import Ground
from tests.billing.cell.plan import Listener
from tests.billing.cell.requests import CELL, limits_of
from tests.billing.contracts.selling import POOL, T0
from tests.billing.events import event

SECOND = 1_000


def used(
    ground: Ground,
    request_id: str,
    started_ms: int,
    tokens: tuple[int, int, int],
    *,
    lasted_ms: int = 1_500,
    name: str = "acme",
    ending: Ending = Ending.COMPLETE,
    **fields: object,
) -> UsageEvent:
    """A request that has ended is in the ledger."""
    made = event(
        request_id, tokens, ending, started_ms=started_ms, ended_ms=started_ms + lasted_ms,
        tenant=ground.tenant(name), cell=CELL, model=POOL, pool=POOL, **fields,
    )  # fmt: skip
    ground.raw.xadd(redis_keys.usage_stream(CELL), {redis_keys.USAGE_FIELD: made.to_json()})
    ground.raw.sadd(redis_keys.CELLS, CELL)
    consumer = Consumer(
        ground.engine, ground.raw, name="c", batch=500, claim_idle_ms=0, metrics=ground.metrics
    )
    assert consumer.consume_once() == 1
    return made


def limited(ground: Ground, name: str = "acme", **given_: int | None) -> None:
    with ground.engine.begin() as connection:
        limits.put(connection, limits.find_subject(connection, name, None), POOL, given_)


def lose_everything(ground: Ground) -> None:
    """All but what workers and allocator have written again by the time that levels are counted."""
    ground.text.flushall()
    ground.register("i-1")
    ground.allocator().allocate_once(T0)


def test_fault_35_nobody_is_admitted_before_a_calibrated_cell_has_its_room_again(ground: Ground) -> None:
    ground.text.flushall()
    # A round may come before the machines are known again.
    ground.allocator().allocate_once(T0)
    ground.register("i-1")
    # It never has room: it is not of the cell's pool.
    ground.register("pools", pool="another")
    restorer = ground.restorer()
    assert restorer.restore_once(T0 + SECOND) == []
    assert isinstance(ground.request("r").reserve(), Rebuilding)
    ground.allocator().allocate_once(T0 + SECOND)
    assert restorer.restore_once(T0 + 2 * SECOND) == [CELL]
    assert isinstance(ground.request("r").reserve(), Reserved)


def test_fault_35_emptied_redis_admits_nobody_until_the_ledger_has_been_asked(ground: Ground) -> None:
    ground.allocator().allocate_once(T0)
    lose_everything(ground)
    assert isinstance(ground.request("r").reserve(), Rebuilding)
    ground.restorer().step(T0 + SECOND)
    assert isinstance(ground.request("r").reserve(), Reserved)


def test_fault_35_every_gateway_is_told_that_its_line_is_gone(ground: Ground) -> None:
    with Listener(ground.text, "gw-1", "gw-2") as gateways:
        lose_everything(ground)
        restorer = ground.restorer()
        restorer.step(T0)
        # A moment for what runs to take its place.
        assert gateways.woken() == []
        assert isinstance(ground.request("r").reserve(), Rebuilding)
        restorer.step(T0 + SECOND)
        assert gateways.woken() == ["*", "*"]
        assert isinstance(ground.request("r").reserve(), Reserved)


def test_fault_35_a_minutes_requests_that_were_used_stay_used(ground: Ground) -> None:
    limited(ground, requests_per_minute=3, units_per_minute=None)
    for number in range(3):
        used(ground, f"r{number}", T0 - SECOND, (1, 0, 1))
    lose_everything(ground)
    ground.restorer().step(T0)
    refused = ground.request("r", tenant_limits=limits_of(requests=3)).reserve()
    assert isinstance(refused, LimitReached)
    assert refused.limit == "requests"
    assert isinstance(ground.request("s", "bolt", tenant_limits=limits_of(requests=3)).reserve(), Reserved)


@pytest.mark.parametrize("limit", [{"requests_per_day": 3}, {"tokens_per_day": 36}, {"units_per_day": 1}])
def test_fault_35_a_days_use_stays_used(ground: Ground, limit: dict[str, int]) -> None:
    """Also what ended long before the minute that the others look back."""
    limited(ground, **limit)
    for number in range(3):
        used(ground, f"r{number}", T0 - 600 * SECOND, (10, 0, 2))
    lose_everything(ground)
    ground.restorer().step(T0)
    refused = ground.request("r", tenant_limits=Limits.of(**limit), tokens=10).reserve(100)
    assert isinstance(refused, LimitReached)
    assert refused.window_s == DAY_S
    assert isinstance(
        ground.request("s", "bolt", tenant_limits=Limits.of(**limit), tokens=10).reserve(100), Reserved
    )


@pytest.mark.parametrize(
    "limit", [each for each in FIELDS if each.window_s > MINUTE_S], ids=lambda each: each.name
)
def test_fault_35_use_counts_until_its_limits_window_has_passed(ground: Ground, limit: LimitField) -> None:
    """What used up the whole limit nine tenths of its window ago leaves a tenth of it used."""
    amount = {LimitKind.REQUESTS: 10, LimitKind.TOKENS: 10, LimitKind.UNITS: 40}[limit.kind]
    limited(ground, **{limit.name: amount})
    used_ms = T0 - limit.window_s * 900
    for number in range(10):
        used(ground, f"r{number}", used_ms - SECOND, (0, 0, 1), lasted_ms=SECOND)
    used(ground, "before", T0 - limit.window_s * 2_000, (0, 0, 10))
    with ground.engine.connect() as connection:
        (found,) = rebuild.levels_of(connection, {CELL: []}, T0)[CELL]
    ((_, level),) = found.levels  # type: ignore[union-attr]
    assert level == pytest.approx(amount * limit.scale / 10, rel=0.01)


@pytest.mark.parametrize("limit", ["tokens_per_minute", "tokens_per_day"])
def test_fault_35_each_ending_counts_as_it_did_before(ground: Ground, limit: str) -> None:
    """Each has used a decimal digit of its own, so that the level shows which of them count."""
    limited(ground, **{limit: 10**12})
    before = [
        used(ground, f"r{place}", T0 - SECOND, (0, 0, 10**place), lasted_ms=SECOND, ending=ending)
        for place, ending in enumerate(sorted(Ending))
    ]
    with ground.engine.connect() as connection:
        (found,) = rebuild.levels_of(connection, {CELL: []}, T0)[CELL]
    ((_, level),) = found.levels  # type: ignore[union-attr]
    assert level == sum(each.charged_tokens for each in before)
    assert {each.ending for each in before if each.charged_tokens} == BILLED_ENDINGS | CHARGED_UNBILLED


def test_fault_35_reserved_capacity_that_was_used_is_not_had_twice(ground: Ground) -> None:
    signed = ground.sign("acme", 100)
    # Two seconds of its rate within the last tenth of a second, and what another class used beside it.
    used(
        ground,
        "r",
        T0 - 100,
        (0, 0, 50),
        lasted_ms=100,
        class_=CapacityClass.RESERVED,
        contract=signed.contract_id,
    )
    used(ground, "o", T0 - 100, (0, 0, 500), lasted_ms=100, class_=CapacityClass.ON_DEMAND)
    ground.text.flushall()
    ground.register("i-1")
    restorer = ground.restorer()
    # Its numbers come first, or there is nothing to raise.
    assert restorer.restore_once(T0) == []
    ground.allocator().allocate_once(T0)
    assert restorer.restore_once(T0) == [CELL]
    assert float(ground.contract("acme")["u"]) == pytest.approx(200_000, rel=0.1)
    refused = ground.request("next", asked=Tier.RESERVED).reserve()
    assert isinstance(refused, LimitReached)
    assert refused.limit == "contract"


def test_a_stream_is_counted_as_it_ran_and_not_at_its_end(ground: Ground) -> None:
    """A minute's limit of 6,000 units drains 100 a second: a stream that made that for a minute leaves
    nothing but its prompt's part.
    """
    limited(ground, units_per_minute=6_000)
    used(ground, "r", T0 - 60 * SECOND, (0, 0, 1_500), lasted_ms=60 * SECOND)
    with ground.engine.connect() as connection:
        (found,) = rebuild.levels_of(connection, {CELL: []}, T0)[CELL]
    assert found.key == redis_keys.tenant_bucket(CELL, ground.tenant("acme"), POOL)
    ((_, units_mu),) = found.levels  # type: ignore[union-attr]
    assert 0 < units_mu < 200_000


def test_a_restarted_redis_keeps_its_levels_and_is_asked_once(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    limited(ground, requests_per_minute=60, units_per_minute=2_000)
    used(ground, "r", T0 - SECOND, (1_000, 0, 100))
    restorer = ground.restorer()
    restorer.step(T0)
    one = ground.request("next", tenant_limits=limits_of(60, 2_000_000))
    one.reserve(100_000)
    before = one.tenant_level("u")
    assert before > 1_200_000
    ground.text.set(redis_keys.intact(CELL), "an earlier run")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        restorer.step(T0)
        restorer.step(T0)
    assert one.tenant_level("u") == pytest.approx(before, rel=0.1)
    assert sum("held against the ledger" in record.message for record in caplog.records) == 1


def test_fault_35_an_older_copy_is_raised_to_what_was_used_since(ground: Ground) -> None:
    """As after a failover, or a restore: the cell says that it was intact, in another run; requests go on
    meanwhile.
    """
    limits_ = limits_of(requests=3)
    limited(ground, requests_per_minute=3)
    for number in range(3):
        used(ground, f"r{number}", T0 - SECOND, (1, 0, 1))
    ground.text.set(redis_keys.intact(CELL), "the run before")
    assert isinstance(ground.request("meanwhile", tenant_limits=limits_).reserve(), Reserved)
    ground.restorer().step(T0)
    assert isinstance(ground.request("next", tenant_limits=limits_).reserve(), LimitReached)


def test_keys_have_their_own_limits_and_another_cells_use_is_not_counted(ground: Ground) -> None:
    with ground.engine.begin() as connection:
        limits.put(connection, limits.Subject(ground.tenant("acme"), None), "*", {"requests_per_minute": 10})
    used(ground, "r", T0 - SECOND, (1, 0, 1), key_id="key_x")
    elsewhere = event(
        "e", started_ms=T0 - SECOND, tenant=ground.tenant("acme"), cell="other", model=POOL, pool=POOL
    )
    ground.raw.xadd(redis_keys.usage_stream(CELL), {redis_keys.USAGE_FIELD: elsewhere.to_json()})
    Consumer(
        ground.engine, ground.raw, name="c", batch=500, claim_idle_ms=0, metrics=ground.metrics
    ).consume_once()
    with ground.engine.connect() as connection:
        (found,) = rebuild.levels_of(connection, {CELL: []}, T0)[CELL]
    assert found.key == redis_keys.tenant_bucket(CELL, ground.tenant("acme"), POOL)
    ((_, requests),) = found.levels  # type: ignore[union-attr]
    assert 0.8 < requests <= 1


@given(
    st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 50_000)), max_size=30),
    st.integers(0, 500),
    st.integers(0, 60_000),
)
def test_a_level_is_that_of_a_bucket_that_drains_every_millisecond(
    charges: Sequence[tuple[int, int]], drains: int, later: int
) -> None:
    now = max([at for at, _ in charges], default=0) + later
    held, at = 0, 0
    for moment, amount in sorted(charges):
        held, at = max(0, held - drains * (moment - at)) + amount, moment
    expected = max(0, held - drains * (now - at))
    assert rebuild.level(charges, drains, now) == pytest.approx(expected)


def test_limits_of_more_tenants_than_a_statement_has_parameters_are_found(database: Engine) -> None:
    with database.begin() as connection:
        tenant_id = tenants.create(connection, "acme").tenant_id
        limits.put(connection, Subject(tenant_id, None), "*", {"concurrency": 3})
        found = limits.table_of(connection, {tenant_id, *(f"ten_{number}" for number in range(70_000))})
    assert found.for_model(tenant_id, None, "m1") == Limits.of(concurrency=3)
