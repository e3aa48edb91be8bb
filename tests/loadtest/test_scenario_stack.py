"""The stack of the scenarios, set up as an operator would: what is signed is served as reserved at both
gateways, and what callers saw is recorded.
"""

from collections.abc import Iterator

import pytest

from loadtest.scenarios.__main__ import SCENARIOS, Unknown, chosen
from loadtest.scenarios.arrivals import Shape, even, requests, together
from loadtest.scenarios.measures import by_tenant, work_between
from loadtest.scenarios.play import play
from loadtest.scenarios.record import Ended
from loadtest.scenarios.speed import EngineSpeed
from loadtest.scenarios.stack import ScenarioStack, running

pytestmark = pytest.mark.together

SPEED = EngineSpeed(slots=8, decode_ms=2.0)
SHAPE = Shape(50, 12)


@pytest.fixture(scope="module")
def stack() -> Iterator[ScenarioStack]:
    with running(SPEED) as stack:
        stack.add_tenant("owner")
        stack.add_tenant("guest")
        stack.sign("owner", 4000)
        yield stack


def test_callers_are_served_in_their_class_at_both_gateways(stack: ScenarioStack) -> None:
    owner, guest = (
        requests("owner", even(10, 0, 1), SHAPE),
        requests("guest", even(10, 0, 1), SHAPE, tier="flex"),
    )
    parts = by_tenant(play(stack, together(owner, guest), patience_s=10))
    assert {name: len(part) for name, part in parts.items()} == {"owner": 10, "guest": 10}
    for name, work_class in (("owner", "reserved"), ("guest", "flex")):
        for record in parts[name]:
            assert (record.ended, record.work_class, record.prompt, record.output) == (
                Ended.COMPLETE,
                work_class,
                50,
                12,
            )
            assert record.first_s is not None
            # A busy machine may read all of an answer at once.
            assert record.arrival.at_s < record.first_s <= record.marks[-1][0]
        assert {record.arrival.gateway for record in parts[name]} == {0, 1}
        assert work_between(parts[name], SPEED, 0, 60) == pytest.approx(10 * SPEED.units(50, 12))


def test_what_is_over_the_contract_is_refused_with_a_time(stack: ScenarioStack) -> None:
    records = play(stack, requests("owner", even(200, 0, 1), SHAPE, tier="priority"), patience_s=10)
    refused = [record for record in records if record.ended is Ended.REFUSED]
    assert len(refused) > 20
    assert {record.status for record in refused} == {429}
    assert all(record.retry_after_ms is not None for record in refused)
    assert {record.work_class for record in records if record.ended is Ended.COMPLETE} == {"reserved"}


def test_a_name_means_one_scenario_and_a_first_word_all_of_its_kind() -> None:
    assert chosen(["fairness", "guarantee"]) == ["guarantee", "fairness"]
    assert chosen(["vtc"]) == [name for name in SCENARIOS if name.startswith("vtc-")]
    assert chosen([]) == [name for name in SCENARIOS if name != "guarantee-here"]
    assert chosen(["guarantee-here"]) == ["guarantee-here"]
    with pytest.raises(Unknown, match="no scenario 'fair'"):
        chosen(["fair"])
