"""Promises to whoever was shown a plan: what was shown is taken, or nothing."""

from dataclasses import replace

import pytest

from billing.contracts.timeline import FOREVER_MS, Span
from billing.refusals import Conflict
from tests.billing.contracts.selling import DAY, T0, UNIT
from tests.billing.reclaims.conftest import MINUTE, Ground

SHORT = Span(T0, T0 + 100 * DAY, 500 * UNIT)


def refused(ground: Ground, **fields: object) -> str:
    """Why; and nothing has changed."""
    with pytest.raises(Conflict) as found:
        ground.order(T0, by_ms=T0, **fields)
    assert found.value.code == "plan_changed"
    with ground.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from reclaim").scalar_one() == 0
    assert ground.drained() == set()
    return found.value.message


def test_what_was_shown_is_taken_however_busy_it_has_become(ground: Ground) -> None:
    assert [each.instance for each in ground.plan(T0).leaving] == ["a"]
    assert ground.request("r1", "a", "bolt").reserve()
    assert [each.instance for each in ground.plan(T0).leaving] == ["b"]
    assert ground.order(T0, chosen=("a",)).chosen == ("a",)


def test_without_what_was_shown_it_is_planned_anew(ground: Ground) -> None:
    assert ground.request("r1", "a", "bolt").reserve()
    assert ground.order(T0).chosen == ("b",)


def test_a_machine_that_is_gone_is_not_exchanged_for_another(ground: Ground) -> None:
    ground.register("a", status="draining")
    assert "Not there to be taken any more: a." in refused(ground, chosen=("a",))
    # With one that runs nothing, none of those that run must leave.
    assert "0 must leave, not the 1 that were shown" in refused(ground, chosen=("b",))
    assert ground.order(T0, chosen=()).chosen == ()


def test_as_many_as_must_leave(ground: Ground) -> None:
    assert "1 must leave, not the 2 that were shown" in refused(ground, chosen=("a", "b"))
    assert "1 must leave, not the 0 that were shown" in refused(ground, chosen=())


def test_no_more_is_broken_than_was_shown(ground: Ground) -> None:
    ground.sign("acme", 1500)
    assert ground.plan(T0, breaks=True).broken == (SHORT,)
    for shown in (
        (),
        (replace(SHORT, value=SHORT.value - 1),),
        (replace(SHORT, from_ms=T0 + 1),),
        (replace(SHORT, until_ms=SHORT.until_ms - 1),),
    ):
        assert "more than was shown: from" in refused(ground, breaks=True, broken=shown)
    # Less than was shown is as well: it comes later than what was meant by now.
    assert ground.order(
        T0 + 1, by_ms=T0 + 1, breaks=True, broken=(replace(SHORT, until_ms=FOREVER_MS),)
    ).breaks


def test_who_asks_for_a_machine_by_name_gets_it_when_it_drains_later(ground: Ground) -> None:
    by_ms = T0 + DAY
    named, any_one = ground.order(T0, by_ms=by_ms, chosen=("b",)), ground.order(T0, by_ms=by_ms + MINUTE)
    assert (named.chosen, any_one.chosen) == ((), ())
    assert ground.request("r1", "b", "bolt").reserve()
    ground.step(by_ms)
    assert (ground.now(named).chosen, ground.now(any_one).chosen) == (("b",), ("a",))


def test_one_that_was_asked_for_and_is_gone_by_then_does_not_keep_another_from_leaving(
    ground: Ground,
) -> None:
    by_ms = T0 + DAY
    made = ground.order(T0, by_ms=by_ms, chosen=("b",))
    ground.register("b", status="draining")
    ground.register("c")
    ground.step(by_ms)
    assert ground.now(made).chosen == ("a",)
