"""Classes, room, line and contract against a model in Python: any steps, in any order; after each the cell holds what the model says."""

from typing import Any

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from billing import redis_keys
from billing.cell.replies import (
    AlreadySettled,
    Dropped,
    LimitKind,
    Missing,
    Refused,
    Renewed,
    Replayed,
    Reserved,
    Settled,
    StillLeased,
    Waiting,
)
from billing.cell.scripts import Asked, Limits
from billing.tokens import Tokens
from tests.billing.cell import plan
from tests.billing.cell.capacity_model import CellModel, Request
from tests.billing.cell.requests import CELL, CellRequest, empty, usage_events

# Of each tenant: its weight, and how many requests it may have open.
TENANTS = {"a": (1, -1), "b": (4, 3), "c": (2, -1)}
BURST_MU = 50_500
INDEX = st.integers(0, 11)
COSTS = st.sampled_from([0, 1_000, 8_000, 40_000])


class CapacityMachine(RuleBasedStateMachine):
    """Three tenants, one with a contract that spills; two instances; one request's gateway is dead."""

    client: redis.Redis
    gateway: plan.Listener

    def __init__(self) -> None:
        super().__init__()
        empty(self.client)
        self.gateway.woken()
        self.model = CellModel(BURST_MU, lambda request_id: plan.granted_at(self.client, request_id))
        self.events = self.arrived = 0
        # It drains one mu a second: nothing, while an example runs.
        plan.sign(self.client, "c", 1, "spill")
        self.client.hset(redis_keys.contract_bucket(CELL, "c"), "burst", BURST_MU)
        self.plan_room((3, 1), (2, 2))

    def real(self, request_id: str, asked: Asked = Asked.AUTO, sequences: int = 1, wait_max: int = 3) -> CellRequest:
        number = int(request_id[1:])
        tenant = "abc"[number % 3]
        weight, concurrency = TENANTS[tenant]
        return CellRequest(
            self.client, request_id, tenant=tenant, key_id=tenant, asked=asked, weight=weight, sequences=sequences,
            wait_max=wait_max, tenant_limits=Limits(concurrency=concurrency), candidates=plan.TWO,
            gateway="gw-dead" if number % 12 == 11 else "gw-1",
        )  # fmt: skip

    def plan_room(self, first: tuple[int, int], second: tuple[int, int]) -> None:
        room = {"i-1": first, "i-2": second}
        plan.set_room(self.client, room)
        self.model.room = room
        plan.plan_anew(self.client)
        again = [each.request_id for each in self.model.requests.values() if each.state == "granted"]
        self.model.grant_all()
        self.hears(sorted(again + self.model.heard()), in_order=False)

    def hears(self, expected: list[str], *, in_order: bool = True) -> None:
        woken = self.gateway.woken()
        assert (woken if in_order else sorted(woken)) == expected

    def pick(self, index: int, *states: str) -> str:
        """One of the requests in these states; one that never was, where there is none."""
        found = [each.request_id for each in self.model.requests.values() if each.state in states]
        return found[index % len(found)] if found else f"r{1_000 + index}"

    @rule(
        asked=st.sampled_from([Asked.AUTO, Asked.AUTO, Asked.ON_DEMAND, Asked.FLEX]),
        cost_mu=COSTS,
        sequences=st.sampled_from([1, 1, 1, 2, 9, 0]),
        wait_max=st.sampled_from([3, 3, 3, 0]),
        count=st.integers(1, 4),
    )
    def arrive(self, asked: Asked, cost_mu: int, sequences: int, wait_max: int, count: int) -> None:
        for _ in range(count):
            self.arrived += 1
            self.reserve(f"r{self.arrived}", asked, cost_mu, sequences, wait_max)

    @rule(index=INDEX, states=st.sampled_from([("waiting",), ("granted",), ("open", "settled")]))
    def ask_again(self, index: int, states: tuple[str, ...]) -> None:
        request_id = self.pick(index, *states)
        if request_id in self.model.requests:
            self.reserve(request_id, Asked.AUTO, 0, 1, 3)

    def reserve(self, request_id: str, asked: Asked, cost_mu: int, sequences: int, wait_max: int) -> None:
        known = self.model.requests.get(request_id)
        if known is not None and known.state in ("waiting", "granted"):
            # The same request again.
            asked, cost_mu, sequences = Asked(known.asked), known.cost_mu, known.sequences
        real = self.real(request_id, asked, sequences, wait_max)
        reply = real.reserve(cost_mu)
        request = known or Request(
            request_id, real.tenant, asked.value, cost_mu, sequences, real.weight, alive=real.gateway == "gw-1"
        )
        expected = self.model.reserve(request, wait_max, TENANTS[real.tenant][1])
        kinds: dict[str, type[Any]] = {
            "settled": AlreadySettled, "replayed": Replayed, "open": Reserved, "waiting": Waiting,
            "concurrency": Refused, "room": Refused,
        }  # fmt: skip
        assert isinstance(reply, kinds[expected]), (reply, expected)
        if isinstance(reply, Refused):
            assert reply.limit is LimitKind(expected)
        if isinstance(reply, Reserved):
            assert reply.grant.class_[0] == request.class_
            assert reply.grant.instance == request.instance
        self.hears(self.model.heard())

    @rule(index=INDEX, output=st.integers(0, 12), move=st.sampled_from(["", "", "i-1", "i-2"]), rare=INDEX)
    def checkpoint(self, index: int, output: int, move: str, rare: int) -> None:
        request_id = self.pick(index, *(("open",) if rare else ("waiting", "granted", "settled")))
        known = self.model.requests.get(request_id)
        if known is not None:
            output = max(output, known.output)
        usage = Tokens(0, 0, output)
        reply = self.real(request_id).checkpoint(usage, 4_000 * output, moved_to=(move, "e-9" if move else ""))
        if known is None or known.state in ("waiting", "granted"):
            assert isinstance(reply, Missing)
        elif known.state == "settled":
            assert isinstance(reply, AlreadySettled)
        else:
            assert isinstance(reply, Renewed)
            known.output, known.lapsed = output, False
            self.model.charge(known, max(known.charged_mu, 4_000 * output))
            self.model.move(known, move)

    @rule(index=INDEX, cost_mu=COSTS, rare=INDEX)
    def end(self, index: int, cost_mu: int, rare: int) -> None:
        self.settle(self.pick(index, *(("open",) if rare else ("waiting", "granted", "settled"))), cost_mu)

    def settle(self, request_id: str, cost_mu: int) -> None:
        known = self.model.requests.get(request_id)
        reply = self.real(request_id).settle(cost_mu)
        if known is not None and known.state == "settled":
            assert isinstance(reply, AlreadySettled)
            return
        assert isinstance(reply, Settled)
        assert reply.orphan == (known is None or known.state != "open")
        self.events += 1
        self.model.settle(request_id, cost_mu)
        self.hears(self.model.heard())

    @rule(index=INDEX, states=st.sampled_from([("waiting",), ("granted",), ("open",)]))
    def give_up(self, index: int, states: tuple[str, ...]) -> None:
        self.leave(self.pick(index, *states))

    def leave(self, request_id: str) -> None:
        left = self.real(request_id).leave()
        assert left.dropped == self.model.leave(request_id)
        self.hears(self.model.heard())

    @rule(index=INDEX, states=st.sampled_from([("waiting",), ("granted",), ("open",)]))
    def lapse(self, index: int, states: tuple[str, ...]) -> None:
        request_id = self.pick(index, *states)
        known = self.model.requests.get(request_id)
        if known is not None and known.state != "settled":
            self.real(request_id).let_lease_pass()
            known.lapsed = True

    @rule(index=INDEX, states=st.sampled_from([("waiting",), ("granted",), ("open",), ("settled",)]))
    def reap(self, index: int, states: tuple[str, ...]) -> None:
        lapsed = [each.request_id for each in self.model.requests.values() if each.lapsed and each.state in states]
        request_id = lapsed[index % len(lapsed)] if lapsed else self.pick(index, *states)
        known = self.model.requests.get(request_id)
        reply = self.real(request_id).reap()
        if known is None:
            assert isinstance(reply, Missing)
        elif known.state == "settled":
            assert isinstance(reply, AlreadySettled)
        elif not known.lapsed:
            assert isinstance(reply, StillLeased)
        elif known.state == "open":
            assert isinstance(reply, Settled)
            self.events += 1
            self.model.settle(request_id, 4_000 * known.output)
        else:
            assert isinstance(reply, Dropped)
            self.model.leave(request_id)
        self.hears(self.model.heard())

    @rule(first=st.integers(0, 4), second=st.integers(0, 4), flex=st.integers(0, 4))
    def new_room(self, first: int, second: int, flex: int) -> None:
        self.plan_room((first, min(first, flex)), (second, min(second, flex)))

    @invariant()
    def the_cell_holds_what_the_model_says(self) -> None:
        model, client = self.model, self.client
        assert plan.flight(client) == {name: count for name, count in model.flight.items() if count}
        for class_ in "of":
            waiting = {t: model.virtual[t] for t in "abc" if model.queue(class_, t)}
            assert plan.tenants_waiting(client, class_) == waiting
            for tenant in "abc":
                assert plan.queue(client, tenant, class_) == model.queue(class_, tenant)
        for tenant in "abc":
            assert plan.virtual(client, tenant) == model.virtual.get(tenant, 0)
            assert self.real(f"r{'abc'.index(tenant)}").tenant_level("c") == model.opened(tenant)
        assert plan.flight_field(client, "used") == model.used_mu
        assert plan.contract_field(client, "c", "used") == model.contract_used_mu
        assert plan.contract_field(client, "c", "borrowed") == model.borrowed_mu
        alive = {each.request_id for each in model.requests.values() if each.state != "settled"}
        assert set(client.zrange(redis_keys.open_requests(CELL), 0, -1)) == alive
        for name, request in model.requests.items():
            assert plan.state_of(client, name) == request.state

    @invariant()
    def everything_ends_by_itself_but_the_usage(self) -> None:
        without = [key for key in self.client.keys("*") if self.client.ttl(key) < 0 and key != redis_keys.intact(CELL)]
        assert without in ([], [redis_keys.usage_stream(CELL)])
        assert len(usage_events(self.client)) == self.events

    def teardown(self) -> None:
        for known in list(self.model.requests.values()):
            if known.state == "open":
                self.settle(known.request_id, 3_000)
        while any(each.state != "settled" for each in self.model.requests.values()):
            self.leave(self.pick(0, "waiting", "granted"))
        self.the_cell_holds_what_the_model_says()
        assert plan.flight(self.client) == {}
        assert self.client.keys("*:w*") == []
        assert self.client.zcard(redis_keys.open_requests(CELL)) == 0
        assert self.client.keys("*:lent:*") == []


def test_any_order_of_steps_keeps_room_line_and_counters_right(valkey: redis.Redis, gateway: plan.Listener) -> None:
    CapacityMachine.client = valkey
    CapacityMachine.gateway = gateway
    run_state_machine_as_test(
        CapacityMachine,
        settings=settings(
            max_examples=40, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
