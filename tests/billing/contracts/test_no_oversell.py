"""Reserved is never oversold: any sequence of signings, notices, amendments, calibrations, reclaims and
changes of the pool, on a real PostgreSQL, leaves no instant at which more is signed than there is; nor do any
number of signings at once.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, func, select

from billing.catalogue import models, tenants
from billing.contracts import store
from billing.contracts.calibrations import Measured, record
from billing.contracts.clock import advance
from billing.contracts.commitments import change_pool, lock_position
from billing.contracts.lifecycle import amend, draft, give_notice, sign
from billing.contracts.position import Taken, refuse_worse
from billing.contracts.rates import rates_now
from billing.contracts.terms import Step, burst_mu
from billing.refusals import Conflict, RequestRefused
from billing.schema.capacity import calibration, contract, contract_history, contract_step, pool, reclaim
from tests.billing.contracts.selling import DAY, POOL, T0, UNIT, furnish, shortfalls, take, terms
from tests.examples import examples

RATE = st.integers(1, 2400)
DAYS = st.integers(0, 50)
SOON = st.integers(0, 10)
# ms of the rate.
BURST = st.sampled_from([1_000, 1_000, 1_500, 4_000])
RAMP = st.lists(st.tuples(SOON, RATE), max_size=2, unique_by=lambda step: step[0])
SIGN = st.tuples(
    st.just("sign"), st.sampled_from(["acme", "bolt", "core"]), SOON, st.integers(15, 90), RATE, RAMP,
    st.sampled_from([0, 0, 100, 500]), BURST
)  # fmt: skip
AMEND = st.tuples(
    st.just("amend"), st.integers(0, 5), SOON, RATE, RAMP, st.one_of(st.none(), st.integers(1, 50)),
    st.one_of(st.none(), BURST)
)  # fmt: skip
ACT = st.one_of(
    SIGN,
    AMEND,
    st.tuples(st.just("notice"), st.integers(0, 5), st.sampled_from(["tenant", "operator"])),
    st.tuples(st.just("pool"), st.integers(0, 4), st.sampled_from([0, 100, 500]), st.sampled_from([0, 300])),
    st.tuples(
        st.just("calibrate"), st.sampled_from([400, 700, 1000, 1300]), st.sampled_from([0, 90, 100, 180]),
        st.sampled_from([2000, 3700, 4000, 4300, 8000]), st.sampled_from([True, True, False]),
    ),
    st.tuples(st.just("reclaim"), st.integers(1, 2), DAYS, st.one_of(st.none(), st.integers(1, 30))),
    st.tuples(st.just("wait"), st.integers(0, 20)),
)  # fmt: skip


class Operator:
    """Does what is drawn, as the others who sell, take and measure do it: with the pool held, and refused
    where it breaks a contract.
    """

    def __init__(self, connection: Connection, tenants: dict[str, str]) -> None:
        self.connection = connection
        self.tenants = tenants
        self.now_ms = T0
        self.count = 0
        # How many new units one that was signed may be worth after the act that was done last.
        self.worth = Fraction(1)

    def does(self, act: tuple[Any, ...]) -> None:
        """Refusals are the point; they take back what they began."""
        name, *said = act
        self.count += 1
        self.worth = Fraction(1)
        try:
            with self.connection.begin_nested():
                getattr(self, name)(*said)
        except RequestRefused:
            pass

    def sign(
        self,
        tenant: str,
        start: int,
        days: int,
        rate: int,
        ramp: list[tuple[int, int]],
        headroom: int,
        burst_ms: int,
    ) -> None:
        from_ms = self.now_ms + start * DAY
        steps = [(from_ms, rate), *((from_ms + (1 + day) * DAY, units) for day, units in sorted(ramp))]
        what = terms(
            self.tenants[tenant], steps, from_ms, from_ms + days * DAY, tenant_notice_days=5,
            operator_notice_days=10, headroom_permille=headroom, burst_ms=burst_ms,
        )  # fmt: skip
        sign(
            self.connection, draft(self.connection, what, now_ms=self.now_ms).contract_id, now_ms=self.now_ms
        )

    def notice(self, index: int, side: Any) -> None:
        give_notice(self.connection, self._contract(index), side, now_ms=self.now_ms)

    def amend(
        self,
        index: int,
        start: int,
        rate: int,
        ramp: list[tuple[int, int]],
        longer: int | None,
        burst_ms: int | None,
    ) -> None:
        found = self._contract(index)
        from_ms = self.now_ms + start * DAY
        steps = (
            Step(from_ms, rate * UNIT),
            *(Step(from_ms + (1 + day) * DAY, units * UNIT) for day, units in sorted(ramp)),
        )
        ends_ms = None if longer is None else store.find(self.connection, found).terms.ends_ms + longer * DAY
        amend(
            self.connection, found, steps=steps if rate % 3 else (), ends_ms=ends_ms, burst_ms=burst_ms,
            now_ms=self.now_ms
        )  # fmt: skip

    def pool(self, instances: int, headroom: int, set_aside: int) -> None:
        change_pool(
            self.connection, POOL, now_ms=self.now_ms, instances=instances, headroom_permille=headroom,
            set_aside_mu_s=set_aside * UNIT,
        )  # fmt: skip

    def calibrate(self, capacity: int, cached: int, output: int, reweigh: bool) -> None:
        old = models.find(self.connection, POOL).weights
        new = models.Weights(old.w_in_mu, cached, output)
        measured = Measured(
            pool=POOL,
            model=POOL,
            weights=new,
            capacity_mu_s=capacity * UNIT,
            sequences=16,
            tpot_target_ms=50,
            ttft_target_ms=1000,
            hardware="cpu",
            engine_version="0.32",
            error_permille=30,
            report={},
        )
        # A moment apart, so that the newest is the last.
        record(self.connection, measured, registered=0, reweigh=reweigh, at_ms=self.now_ms + self.count)
        moved = [(old.w_out_mu, output), *([(old.w_cached_mu, cached)] if old.w_cached_mu else [])]
        self.worth = max(Fraction(1), *(Fraction(now, was) for was, now in moved))

    def reclaim(self, instances: int, start: int, days: int | None) -> None:
        by_ms = self.now_ms + start * DAY
        until = {} if days is None else {"until_ms": by_ms + days * DAY}
        before = lock_position(self.connection, POOL, self.now_ms)
        after = replace(before, taken=(*before.taken, Taken(instances, by_ms, **until)))
        refuse_worse(before, after, self.now_ms, what="It")
        take(self.connection, instances, by_ms, reclaim_id=f"rec_{self.count}", **until)

    def wait(self, days: int) -> None:
        self.now_ms += days * DAY
        advance(self.connection, self.now_ms)

    def _contract(self, index: int) -> str:
        found = store.list_all(self.connection, states=store.BINDING)
        if not found:
            raise Conflict("none yet")
        return found[index % len(found)].contract_id


def rows(connection: Connection, table: Any) -> list[Any]:
    return list(connection.execute(select(table)))


def signed_and_there(connection: Connection, moment_ms: int) -> tuple[int, int, int]:
    """Straight from the tables, without a line of the product: what is signed, what all bursts at once ask
    for, and what there is.
    """
    (owned,) = rows(connection, pool)
    measured = max(
        rows(connection, calibration), key=lambda row: (row.created_ms, row.calibration_id)
    ).capacity_mu_s
    away = sum(
        row.instances for row in rows(connection, reclaim)
        if row.by_ms <= moment_ms and (row.released_ms is None or moment_ms < row.released_ms)
    )  # fmt: skip
    force = {
        row.contract_id: row for row in rows(connection, contract)
        if row.state in {"signed", "active",
        "notice_given"} and row.starts_ms <= moment_ms < row.effective_end_ms
    }  # fmt: skip
    steps = [
        row
        for row in rows(connection, contract_step)
        if row.contract_id in force and row.from_ms <= moment_ms
    ]
    rates = {
        contract_id: max((row.from_ms, row.mu_s) for row in steps if row.contract_id == contract_id)[1]
        for contract_id in force
    }
    at_once = sum(rate * force[contract_id].burst_ms // 1000 for contract_id, rate in rates.items())
    kept = max([owned.headroom_permille, *(row.headroom_permille for row in force.values())])
    return (
        sum(rates.values()),
        at_once,
        max(0, (owned.instances - away) * measured * (1000 - kept) // 1000 - owned.set_aside_mu_s),
    )


def check(operator: Operator, moments: list[int]) -> None:
    connection = operator.connection
    edges = {row.from_ms for row in rows(connection, contract_step)}
    edges |= {row.effective_end_ms for row in rows(connection, contract)} | {
        row.by_ms for row in rows(connection, reclaim)
    }
    edges |= {row.released_ms for row in rows(connection, reclaim) if row.released_ms is not None}
    for moment_ms in {operator.now_ms, *edges, *(operator.now_ms + moment for moment in moments)}:
        if moment_ms >= operator.now_ms:
            signed, at_once, there = signed_and_there(connection, moment_ms)
            # A second of the pool does all bursts, and so what is signed for good.
            assert signed <= at_once
            assert at_once * operator.worth <= there, moment_ms
            rates = rates_now(connection, POOL, moment_ms)
            assert sum(each.mu_s for each in rates) == signed
            assert sum(burst_mu(each.mu_s, each.burst_ms) for each in rates) == at_once
    assert shortfalls(connection, POOL, operator.now_ms) == []


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(SIGN, min_size=1, max_size=3),
    st.lists(ACT, min_size=3, max_size=12),
    st.lists(st.integers(0, 120 * DAY), max_size=5),
)
def test_nothing_that_can_be_done_oversells(
    database: Engine, first: list[tuple[Any, ...]], acts: list[tuple[Any, ...]], moments: list[int]
):
    with database.connect() as connection:
        operator = Operator(connection, furnish(connection).tenants)
        for act in first + acts:
            operator.does(act)
            check(operator, moments)
        connection.rollback()


def test_the_acts_drawn_do_sign_and_are_refused(database: Engine):
    """What the property above relies on: it is not true for want of contracts."""
    with database.connect() as connection:
        operator = Operator(connection, furnish(connection).tenants)
        for act in (
            ("sign", "acme", 0, 30, 1200, [(5, 300)], 0, 1_000), ("sign", "bolt", 10, 30, 1701, [], 0, 1_000),
            ("sign", "bolt", 10, 30, 700, [], 100, 1_000), ("sign", "core", 0, 9, 400, [], 0, 4_000),
            ("sign", "core", 0, 9, 400, [], 0, 1_500), ("sign", "core", 0, 3, 800, [], 0, 1_000), ("amend", 0,
            0, 400, [], None, None),
            ("calibrate", 400, 100, 4000, False),
            ("calibrate", 1300, 100, 8000, False), ("calibrate", 1300, 100, 8000, True), ("calibrate", 1300,
            100, 2000, True),
            ("reclaim", 1, 20, 10), ("notice", 0, "tenant"), ("wait", 20), ("pool", 1, 100, 0),
        ):  # fmt: skip
            operator.does(act)
            check(operator, [])
        changes = (
            connection.execute(select(contract_history.c.change).order_by(contract_history.c.entry))
            .scalars()
            .all()
        )
        assert changes.count("signed") >= 3
        assert {"amended", "notice_given", "active", "ended", "reweighed"} <= set(changes)
        assert changes.count("draft") == changes.count("signed")
        connection.rollback()


def at_once(engine: Engine, acts: list[Callable[[Connection], object]]) -> list[str]:
    """Each in a transaction and a thread of its own, all let go together; the code of each refusal, or
    `done`.
    """
    gate, outcomes = threading.Barrier(len(acts)), [""] * len(acts)

    def run(index: int) -> None:
        gate.wait(30)
        try:
            with engine.begin() as connection:
                acts[index](connection)
            outcomes[index] = "done"
        except RequestRefused as refused:
            outcomes[index] = refused.code

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


@pytest.mark.parametrize("has_row", [True, False])
def test_of_many_signings_at_once_only_those_that_fit_are_signed(database: Engine, has_row: bool):
    with database.begin() as connection:
        furnish(connection, instances=1, capacity=1000, headroom_permille=100)
        if not has_row:
            # The pool's first row is then made by one of them.
            connection.execute(pool.delete())
        ids = [tenants.create(connection, f"tenant-{index}").tenant_id for index in range(8)]
        drafts = [draft(connection, terms(each, 300), now_ms=T0).contract_id for each in ids]
    outcomes = at_once(
        database, [lambda connection, each=each: sign(connection, each, now_ms=T0) for each in drafts]
    )  # fmt: skip
    fit = 3 if has_row else 0
    assert sorted(outcomes) == ["capacity_short"] * (8 - fit) + ["done"] * fit
    with database.begin() as connection:
        assert sum(each.mu_s for each in rates_now(connection, POOL, T0)) == fit * 300 * UNIT
        signed = select(func.count()).select_from(contract).where(contract.c.state == "signed")
        assert connection.execute(signed).scalar_one() == fit


def test_signing_and_shrinking_the_pool_at_once_never_both_succeed(database: Engine):
    for round_number in range(5):
        with database.begin() as connection:
            if not round_number:
                shop = furnish(connection)
            made = draft(connection, terms(shop.tenants["acme"], 1500), now_ms=T0)
        outcomes = at_once(database, [
            lambda connection, made=made: sign(connection, made.contract_id, now_ms=T0),
            lambda connection: change_pool(connection, POOL, now_ms=T0, instances=1),
        ])  # fmt: skip
        assert sorted(outcomes) == ["capacity_short", "done"]
        with database.begin() as connection:
            assert shortfalls(connection, POOL, T0) == []
            connection.execute(pool.update().values(instances=2))
            connection.execute(contract.update().values(state="ended"))


def test_one_draft_signed_twice_at_once_is_signed_once(database: Engine):
    with database.begin() as connection:
        made = draft(connection, terms(furnish(connection).tenants["acme"], 10), now_ms=T0).contract_id
    outcomes = at_once(database, [lambda connection: sign(connection, made, now_ms=T0)] * 4)
    assert sorted(outcomes) == ["done", "not_a_draft", "not_a_draft", "not_a_draft"]


def test_two_who_advance_the_clock_at_once_change_each_state_once(database: Engine):
    with database.begin() as connection:
        shop = furnish(connection)
        for tenant_id in shop.tenants.values():
            made = draft(connection, terms(tenant_id, 10), now_ms=T0)
            sign(connection, made.contract_id, now_ms=T0)
    assert at_once(database, [lambda connection: advance(connection, T0)] * 4) == ["done"] * 4
    with database.begin() as connection:
        changes = connection.execute(select(contract_history.c.change)).scalars().all()
        assert changes.count("active") == 3
