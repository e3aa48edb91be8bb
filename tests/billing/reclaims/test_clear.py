"""Promises of a machine that leaves: flex that can be resumed elsewhere is preempted before anything is
stopped, and only if it can be.
"""

from billing.cell.scripts import Tier
from billing.reclaims import store
from billing.reclaims.clear import PAUSE_MS, PREEMPT_LEAD_MS, SETTLE_MS
from tests.billing.contracts.selling import T0
from tests.billing.reclaims.conftest import MINUTE, Ground

BY = T0 + MINUTE


def furnish(ground: Ground) -> None:
    """On `a` one request of each kind; `b` is busier and stays."""
    for name in ("b1", "b2"):
        assert ground.request(name, "b", "bolt", asked=Tier.ON_DEMAND).reserve()
    assert ground.request("on_demand", "a", "bolt", asked=Tier.ON_DEMAND).reserve()
    assert ground.request("fixed", "a", "bolt", asked=Tier.FLEX).reserve()
    ground.lend("able", "a", "bolt")


def test_resumable_flex_is_preempted_just_before_the_deadline(ground: Ground) -> None:
    furnish(ground)
    with ground.wakes() as heard:
        made = ground.order(T0, by_ms=BY)
        assert made.chosen == ("a",)
        ground.step(BY - PREEMPT_LEAD_MS - 1)
        # Until then it may finish where it is.
        assert heard() == []
        ground.step(BY - PREEMPT_LEAD_MS)
        ground.step(BY - 1)
        # Again, because a message may be lost; the history has it once.
        assert heard() == ["!able", "!able"]
        assert ground.changes(made) == ["planned", "draining", "preempted"]
        assert ground.stops() == []
        ground.step(BY)
        # What cannot be resumed ends at the deadline; what can has its time first.
        assert ground.stops() == ["fixed", "on_demand"]
        ground.step(BY - PREEMPT_LEAD_MS + PAUSE_MS)
    assert ground.stops()[2:] == ["able", "fixed", "on_demand"]


def test_with_a_deadline_of_now_it_is_asked_when_nothing_can_come_back_and_has_its_time(
    ground: Ground,
) -> None:
    furnish(ground)
    with ground.wakes() as heard:
        ground.order(T0, by_ms=T0)
        ground.step(T0)
        assert ground.stops() == ["fixed", "on_demand"]
        for name, asked in (("fixed", Tier.FLEX), ("on_demand", Tier.ON_DEMAND)):
            ground.request(name, "a", "bolt", asked=asked).settle()
        ground.step(T0 + SETTLE_MS - 1)
        assert heard() == []
        ground.step(T0 + SETTLE_MS)
        assert heard() == ["!able"]
        ground.step(T0 + SETTLE_MS + PAUSE_MS - 1)
        assert "able" not in ground.stops()
        ground.step(T0 + SETTLE_MS + PAUSE_MS)
    assert "able" in ground.stops()


def test_where_billing_was_away_at_the_deadline_flex_still_has_its_time(ground: Ground) -> None:
    furnish(ground)
    ground.order(T0, by_ms=BY)
    ground.step(BY + MINUTE)
    assert ground.stops() == ["fixed", "on_demand"]
    ground.step(BY + MINUTE + PAUSE_MS)
    assert "able" in ground.stops()


def test_where_no_machine_stays_it_may_finish_until_the_deadline(ground: Ground) -> None:
    furnish(ground)
    with ground.wakes() as heard:
        ground.order(T0, 2, by_ms=BY)
        ground.step(BY - 1)
        assert heard() == []
        ground.step(BY)
        assert heard() == []
    assert ground.stops()[:2] == ["able", "fixed"]


def test_a_preemption_by_the_last_versions_name_counts(ground: Ground) -> None:
    furnish(ground)
    with ground.wakes() as heard:
        made = ground.order(T0, by_ms=BY)
        with ground.engine.begin() as connection:
            named = {"requests": [{"request": "able"}]}
            store.append(connection, made.reclaim_id, "asked_to_give_way", named, now_ms=BY - PREEMPT_LEAD_MS)
        ground.step(BY - 1)
        assert heard() == ["!able"]
    assert ground.changes(made) == ["planned", "draining", "preempted"]
