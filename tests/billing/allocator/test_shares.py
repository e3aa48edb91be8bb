"""The division of machines, for any load: never more than there is, lent while an holder is idle, its own
at once when it is back.
"""

from dataclasses import replace
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from billing.allocator.shares import (
    ContractUse,
    Health,
    InFlight,
    ReadyInstance,
    Share,
    corrected,
    divide,
    lent,
    missing,
    recent,
    trusted,
    unsold,
)
from billing.wire.instance_entry import EngineLoad

CAPACITY: Final = 1_000_000

counts = st.integers(0, 300)
in_flights = st.builds(InFlight, counts, counts, counts)
healths = st.builds(Health, st.floats(1, 256, allow_nan=False))
machines = st.lists(st.tuples(healths, in_flights), max_size=8).map(
    lambda each: [ReadyInstance(f"i{number}", health, flight) for number, (health, flight) in enumerate(each)]
)
holders = st.lists(
    st.tuples(st.integers(0, 4 * CAPACITY), st.floats(0, 1)).map(
        lambda each: ContractUse(each[0], each[0] * each[1])
    ),
    max_size=5,
)


@given(machines, holders, st.integers(0, 400))
def test_no_machine_is_divided_beyond_what_it_has(
    given_machines: list[ReadyInstance], given_owners: list[ContractUse], on_demand_waits: int
) -> None:
    for machine, share in zip(
        given_machines,
        divide(given_machines, given_owners, CAPACITY, on_demand_waits=on_demand_waits),
        strict=True,
    ):
        assert share.room + share.held == share.sequences == int(machine.health.sequences)
        assert 0 <= share.flex <= share.room
        assert 0 <= share.on_demand <= share.room
        assert share.held >= 0
        assert 0 <= share.preempt <= machine.in_flight.flex
        # What reserved work has in flight is nobody else's.
        assert share.held >= min(share.sequences, machine.in_flight.reserved)


@given(machines, holders)
def test_flex_does_not_grow_while_on_demand_waits(
    given_machines: list[ReadyInstance], given_owners: list[ContractUse]
) -> None:
    for machine, share in zip(
        given_machines, divide(given_machines, given_owners, CAPACITY, on_demand_waits=10_000), strict=True
    ):
        # What on-demand may not have is no loss to it.
        assert share.flex <= machine.in_flight.flex or machine.in_flight.on_demand >= share.on_demand


@given(machines)
def test_without_contracts_all_is_shared(given_machines: list[ReadyInstance]) -> None:
    idle = [replace(machine, in_flight=InFlight()) for machine in given_machines]
    assert all(share.held == 0 for share in divide(idle, [ContractUse(0, 0.0)], CAPACITY, on_demand_waits=0))


def one(
    sequences: float,
    flight: InFlight,
    *given_owners: ContractUse,
    on_demand_waits: int = 0,
    lending: float = 1.0,
) -> Share:
    """One machine of so many sequences."""
    machine = ReadyInstance("i", Health(sequences), flight)
    return divide([machine], given_owners, CAPACITY, on_demand_waits=on_demand_waits, lending=lending)[0]


@given(st.integers(20, 512), st.integers(1, CAPACITY))
def test_an_idle_owners_floor_is_lent_but_for_a_twentieth(sequences: int, rate_mu_s: int) -> None:
    assert one(sequences, InFlight(), ContractUse(rate_mu_s, 0.0)).room >= 0.95 * sequences


class Crowd:
    """On-demand that takes every place it may have at once, for streams of so many rounds (a second each);
    the holders of a part are away.
    """

    def __init__(self, sequences: int, sold: float) -> None:
        self.sequences, self.holders = sequences, [ContractUse(int(CAPACITY * sold), 0.0)]
        self.may_have, self.lending, self.ages = 0, 0.0, list[int]()

    def round(self, lasts: int) -> Share:
        self.ages = [age + 1 for age in self.ages if age + 1 < lasts]
        self._fill()
        flight = InFlight(0, len(self.ages), 0, sum(age > 2 for age in self.ages))
        machines = [ReadyInstance("i", Health(self.sequences), flight)]
        self.lending = trusted(self.lending, machines, unsold(machines, self.holders, CAPACITY))
        (share,) = divide(machines, self.holders, CAPACITY, on_demand_waits=1_000, lending=self.lending)
        self.may_have = share.on_demand
        self._fill()
        return share

    def _fill(self) -> None:
        self.ages += [0] * max(0, self.may_have - len(self.ages))


@given(st.integers(10, 256), st.floats(0.1, 0.9))
def test_an_idle_owners_part_is_lent_whole_to_streams_that_give_it_back(sequences: int, sold: float) -> None:
    crowd = Crowd(sequences, sold)
    for _ in range(12):
        share = crowd.round(lasts=2)
    assert share.on_demand == share.room == sequences


@given(st.integers(10, 256), st.floats(0.1, 0.9))
def test_streams_that_would_not_give_it_back_get_what_nobody_has_bought(sequences: int, sold: float) -> None:
    crowd = Crowd(sequences, sold)
    for _ in range(60):
        crowd.round(lasts=1_000)
    # Two rounds pass before it is known how long they are.
    assert len(crowd.ages) <= sequences * (1 - sold) + 0.3 * sequences * sold + 2


@given(st.integers(10, 256), st.floats(0.1, 0.9), st.integers(0, 60))
def test_what_short_streams_have_borrowed_is_not_left_to_long_ones_for_long(
    sequences: int, sold: float, rounds: int
) -> None:
    crowd = Crowd(sequences, sold)
    for _ in range(12):
        crowd.round(lasts=2)
    for _ in range(3 + rounds):
        share = crowd.round(lasts=1_000)
    assert crowd.lending == 0
    assert share.on_demand <= sequences * (1 - sold) + 1


def test_who_is_not_there_is_trusted_with_less_and_less() -> None:
    machines = [ReadyInstance("i", Health(100), InFlight())]
    lending = 1.0
    for _ in range(11):
        lending = trusted(lending, machines, 0.4)
    assert lending == 0


def test_without_owners_nothing_is_kept_from_on_demand() -> None:
    assert one(100, InFlight(), lending=0.0).on_demand == 100


def test_where_all_is_sold_on_demand_has_a_guards_worth() -> None:
    assert one(100, InFlight(), ContractUse(CAPACITY, 0.0), lending=0.0).on_demand == 10


def test_a_machine_of_one_sequence_can_still_be_lent() -> None:
    assert one(1, InFlight(), ContractUse(CAPACITY // 2, 0.0)).room == 1


@given(st.integers(1, 512), st.floats(0.1, 1))
def test_an_owner_in_use_has_its_floor_and_a_guard(sequences: int, part: float) -> None:
    rate_mu_s = int(CAPACITY * part)
    share = one(sequences, InFlight(), ContractUse(rate_mu_s, float(rate_mu_s)))
    assert share.held >= min(sequences, sequences * rate_mu_s / CAPACITY + max(1, sequences // 10) - 1e-6)


def test_an_owner_that_comes_back_has_its_floor_in_the_next_round() -> None:
    rate_mu_s = CAPACITY // 2
    assert recent(0.0, rate_mu_s, 1000, rate_mu_s) == rate_mu_s
    assert one(100, InFlight(), ContractUse(rate_mu_s, float(rate_mu_s))).room == 40


def test_an_owner_that_stops_has_lent_most_of_it_after_ten_seconds() -> None:
    lately = 1000.0
    for _ in range(10):
        lately = recent(lately, 0, 1000, 1000)
    assert 0 < lately < 50


@given(st.floats(0, 2000), st.integers(-5000, 5000), st.integers(-10, 5000), st.integers(0, 1000))
def test_recent_use_stays_between_nothing_and_the_rate(
    before: float, used: int, elapsed: int, rate: int
) -> None:
    assert 0 <= recent(before, used, elapsed, rate) <= rate


def test_flex_is_preempted_where_reserved_work_lacks_its_guard_and_nowhere_else() -> None:
    holder = ContractUse(CAPACITY, float(CAPACITY))
    # 100 sequences, a guard of 10: 30 + 75 are 15 more than leave it free.
    assert one(100, InFlight(30, 0, 75), holder).preempt == 15
    assert one(100, InFlight(30, 70, 5), holder).preempt == 5
    # More than half of the guard is free.
    assert one(100, InFlight(30, 0, 64), holder).preempt == 0
    # Nobody came back: what is too much by a correction ends by itself.
    assert one(50, InFlight(0, 0, 75), ContractUse(CAPACITY, 0.0)).preempt == 0


def test_flex_keeps_what_leaves_room_for_on_demand_that_waits() -> None:
    for flight, waits, flex, preempt in [
        (InFlight(0, 60, 30), 0, 100, 0),
        (InFlight(0, 60, 30), 10, 30, 0),
        (InFlight(0, 60, 40), 1, 39, 1),
        (InFlight(0, 60, 40), 15, 25, 15),
        (InFlight(0, 60, 40), 1_000, 0, 40),
        (InFlight(0, 0, 100), 7, 93, 7),
        (InFlight(0, 80, 30), 1, 19, 11),
    ]:
        share = one(100, flight, on_demand_waits=waits)
        assert (share.flex, share.preempt) == (flex, preempt), (flight, waits)


def test_flex_keeps_its_places_where_another_machine_has_free_ones() -> None:
    full, empty = (
        ReadyInstance("i", Health(100), InFlight(0, 0, 100)),
        ReadyInstance("j", Health(100), InFlight()),
    )
    for waits, preempt in [(100, 0), (103, 3)]:
        shares = divide([full, empty], [], CAPACITY, on_demand_waits=waits)
        assert [(share.flex, share.preempt) for share in shares] == [(100 - preempt, preempt), (0, 0)]


def test_flex_keeps_what_is_kept_from_on_demand() -> None:
    # Half is sold and idle, and on-demand is trusted with none of it: it may have 50, and has 45.
    share = one(100, InFlight(0, 45, 55), ContractUse(CAPACITY // 2, 0.0), on_demand_waits=1_000, lending=0.0)
    assert (share.on_demand, share.flex, share.preempt) == (50, 50, 5)


@given(machines, holders, st.integers(0, 400), st.floats(0, 1))
def test_no_more_of_flex_is_preempted_for_on_demand_than_waits(
    given_machines: list[ReadyInstance], given_owners: list[ContractUse], waits: int, lending: float
) -> None:
    def given_up(on_demand_waits: int) -> int:
        found = divide(
            given_machines, given_owners, CAPACITY, on_demand_waits=on_demand_waits, lending=lending
        )
        crowded = sum(
            max(0, machine.in_flight.on_demand + machine.in_flight.flex - share.room)
            for machine, share in zip(given_machines, found, strict=True)
        )
        return sum(share.preempt for share in found) - crowded

    assert given_up(waits) <= waits + max(0, given_up(0))


@given(
    st.integers(1, 512),
    st.lists(st.builds(EngineLoad, st.just(0), st.integers(0, 9), st.floats(0, 1)), max_size=60),
)
def test_a_correction_stays_between_one_and_the_calibration(calibrated: int, loads: list[EngineLoad]) -> None:
    health = None
    for load in loads:
        health = corrected(health, calibrated, load)
        assert 1 <= health.sequences <= calibrated


def test_a_machine_that_queues_is_trusted_with_a_tenth_less_each_round_and_recovers_slowly() -> None:
    busy, calm, between = EngineLoad(0, 3, 0.5), EngineLoad(0, 0, 0.5), EngineLoad(0, 0, 0.9)
    health = corrected(None, 100, busy)
    assert health.sequences == 100  # a queue seen once may be the moment between two steps
    for _ in range(2):
        health = corrected(health, 100, busy)
    assert round(health.sequences, 6) == 81
    health = corrected(health, 100, between)
    assert round(health.sequences, 6) == 81
    gained = []
    for _ in range(10):
        after = corrected(health, 100, calm)
        gained.append(after.sequences - health.sequences)
        health = after
    assert gained[:2] == [0, 0]
    assert max(gained) <= 5
    assert health.sequences == 100
    assert corrected(health, 100, EngineLoad(0, 0, 0.96)).sequences == 90


@given(
    st.dictionaries(st.text(max_size=3), st.integers(0, 10**9), max_size=6),
    st.integers(-(10**9), 10**10),
    st.integers(0, 10**9),
)
def test_what_is_lent_is_neither_more_than_was_idle_nor_than_others_took_of_it(
    idle: dict[str, int], others: int, unsold: int
) -> None:
    parts = lent(idle, others, unsold)
    assert all(0 <= parts[name] <= idle[name] for name in idle)
    assert sum(parts.values()) <= max(0, others - unsold)
    if others - unsold >= sum(idle.values()):
        assert parts == idle


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 10**12), max_size=6), st.integers(0, 10**13))
def test_what_is_missing_is_what_the_ready_machines_cannot_do_and_shared_in_proportion(
    rates: dict[str, int], ready: int
) -> None:
    parts = missing(rates, ready)
    short = max(0, sum(rates.values()) - ready)
    assert parts.keys() == rates.keys()
    # Each is rounded down.
    assert short - len(rates) <= sum(parts.values()) <= short
    assert all(0 <= parts[name] <= rates[name] for name in rates)
    assert all(
        abs(parts[name] * sum(rates.values()) - rates[name] * short) < sum(rates.values()) for name in rates
    )
