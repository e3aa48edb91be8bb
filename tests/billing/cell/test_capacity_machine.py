"""Classes, room, queue, preemption and contract against a model in Python: any steps, in any order; after
each the cell holds what the model says.
"""

import math
from typing import Any

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from billing.cell.execute import execute
from billing.cell.replies import (
    AlreadySettled,
    Dropped,
    LimitReached,
    Missing,
    Renewed,
    Reserved,
    Settled,
    StillLeased,
    Waiting,
)
from billing.cell.scripts import Tier, grant_call
from billing.wire import redis_keys
from billing.wire.limits import LimitKind
from billing.wire.tokens import Tokens
from tests.billing.cell import plan
from tests.billing.cell.capacity_model import INSTANCES, CellModel, Request
from tests.billing.cell.capacity_requests import (
    KINDS,
    LIMITS,
    MachineRequest,
    gateway_of,
    next_part,
    request_of,
)
from tests.billing.cell.requests import CELL, charged_by_events, empty, usage_events
from tests.examples import examples
from tests.fixtures.gateway import wait_until

BURST_MU = 50_500
# Reading a prompt takes days, of which a step lets as many pass as it says: those that an example itself
# takes are no matter.
PROMPT_MU = READ_S = 1_000_000
EXAMPLE_S = 7_200
HOUR_S, HALF_MINUTE_S = 3_600, 30
LENT, INDEX = redis_keys.open_requests(CELL).removesuffix("open") + "lent:", st.integers(0, 11)
COSTS = st.sampled_from([0, 1_000, 8_000, 40_000])
PROMPTS = st.sampled_from([0, 0, 0, PROMPT_MU, 2 * PROMPT_MU])
WEIGHTS = st.sampled_from([1, 2, 4])
RATES = st.sampled_from([0, 1, 1, 2])


class CapacityMachine(RuleBasedStateMachine):
    """Three tenants, one with a contract that spills; two instances; of the gateways one is dead, and one
    comes and goes.
    """

    client: redis.Redis
    gateway: plan.Listener

    def __init__(self) -> None:
        super().__init__()
        empty(self.client)
        self.gateway.woken()
        self.other: plan.Listener | None = None
        self.weights: dict[str, int] = {}
        self.model = CellModel(BURST_MU, LIMITS, lambda request_id: plan.granted_at(self.client, request_id))
        self.model.listening.add("gw-1")
        self.told: set[str] = set()
        self.events = self.arrived = 0
        # It drains one mu a second: nothing, while an example runs.
        plan.sign(self.client, "c", 1, "spill")
        self.client.hset(redis_keys.contract_bucket(CELL, "c"), "burst", BURST_MU)
        self.new_room(4, 3, 3, (0, 1), (1, 4, 2))

    def real(
        self,
        request_id: str,
        asked: Tier = Tier.AUTO,
        sequences: int = 1,
        wait_max: int = 3,
        prompt_mu: int = 0,
    ) -> MachineRequest:
        return request_of(self.client, request_id, self.weights, asked, sequences, wait_max, prompt_mu)

    def plans(self, preempt: dict[str, int]) -> None:
        _, on_demand, flex, _, pace_ms = plan.plan_anew(self.client)
        self.model.plan(preempt)
        assert (on_demand, flex) == (len(self.model.waiting("o")), len(self.model.waiting("f")))
        self.paces(pace_ms)
        self.hears(in_order=False)

    def hears(self, *, in_order: bool = True) -> None:
        """Each gateway has heard whom the last step woke there; then time stands still again for what
        tenants have cancelled and used.
        """
        expected = self.model.heard()
        self.told |= {word[1:] for word in expected if word[0] == "!"}
        for name, listener in (("gw-1", self.gateway), ("gw-2", self.other)):
            if listener is not None:
                here = [word for word in expected if gateway_of(word.removeprefix("!")) == name]
                woken = listener.woken()
                assert (woken if in_order else sorted(woken)) == (here if in_order else sorted(here))
        self.model.pace_s = 0
        for tenant in "ac":
            self.passes(tenant, -HOUR_S)

    def passes(self, tenant: str, seconds: int) -> None:
        """As if its bucket had been written so long ago."""
        bucket = self.real(f"r{'abc'.index(tenant)}").keys.tenant_bucket
        if self.client.hexists(bucket, "t"):
            now_s, now_us = self.client.time()
            self.client.hset(bucket, "t", (now_s - seconds) * 1_000_000 + now_us)

    def paces(self, told_ms: int) -> None:
        """When slots should be granted again."""
        expected_ms = math.ceil(self.model.pace_s * 1_000)
        assert max(-1, expected_ms - EXAMPLE_S * 1_000) < told_ms <= expected_ms

    def pick(self, index: int, *states: str) -> str:
        """One of the requests in these states; one that never was, where there is none."""
        found = [each.request_id for each in self.model.requests.values() if each.state in states]
        return found[index % len(found)] if found else f"r{1_000 + index}"

    @rule(
        asked=st.sampled_from(
            [
                Tier.AUTO,
                Tier.ON_DEMAND,
                Tier.FLEX,
                Tier.FLEX,
                Tier.FLEX,
            ]
        ),
        cost_mu=COSTS,
        sequences=st.sampled_from([1, 1, 1, 2, 9, 0]),
        wait_max=st.sampled_from([3, 3, 3, 0]),
        count=st.integers(1, 3),
        prompt_mu=PROMPTS,
    )
    def arrive(
        self, asked: Tier, cost_mu: int, sequences: int, wait_max: int, count: int, prompt_mu: int
    ) -> None:
        for _ in range(count):
            self.arrived += 1
            self.reserve(f"r{self.arrived}", asked, cost_mu, sequences, wait_max, prompt_mu)

    @rule(halves=st.integers(1, 3))
    def a_while_after_its_cancels_a_tenant_asks_again(self, halves: int) -> None:
        self.arrived += -self.arrived % 3 + 3
        self.passes("a", halves * HALF_MINUTE_S)
        self.reserve(f"r{self.arrived}", Tier.ON_DEMAND, 1_000, 1, 3, 0, drained_cancels=halves)

    @rule(index=INDEX, states=st.sampled_from([("waiting",), ("granted",), ("open", "settled")]))
    def ask_again(self, index: int, states: tuple[str, ...]) -> None:
        request_id = self.pick(index, *states)
        if request_id in self.model.requests:
            self.reserve(request_id, Tier.AUTO, 0, 1, 3, 0)

    @rule(index=INDEX, cost_mu=COSTS, prompt_mu=PROMPTS, wait_max=st.sampled_from([3, 3, 3, 0]))
    def go_on(self, index: int, cost_mu: int, prompt_mu: int, wait_max: int) -> None:
        paused = [each.request_id for each in self.model.requests.values() if each.paused]
        follow = [name for name in map(next_part, paused) if name not in self.model.requests]
        if follow:
            self.reserve(follow[index % len(follow)], Tier.FLEX, cost_mu, 1, wait_max, prompt_mu)

    def reserve(
        self, request_id: str, asked: Tier, cost_mu: int, sequences: int, wait_max: int, prompt_mu: int,
        *, drained_cancels: int = 0,
    ) -> None:  # fmt: skip
        known = self.model.requests.get(request_id)
        if known is not None and known.state in ("waiting", "granted"):
            # The same request again.
            asked, cost_mu, sequences, prompt_mu = (
                Tier(known.asked),
                known.cost_mu,
                known.sequences,
                known.prompt_mu,
            )
        real = self.real(request_id, asked, sequences, wait_max, prompt_mu)
        reply = real.reserve(cost_mu)
        request = known or Request(
            request_id=request_id, tenant=real.tenant, asked=asked.value, cost_mu=cost_mu,
            sequences=sequences, weight=real.weight, gateway=real.gateway, can_resume=real.can_resume,
            resumed=real.resumed, prompt_mu=prompt_mu,
        )  # fmt: skip
        expected = self.model.reserve(request, wait_max, reply.now_ms, drained_cancels)
        assert isinstance(reply, KINDS[expected]), (reply, expected)
        if isinstance(reply, LimitReached):
            assert reply.limit is LimitKind(expected)
        if isinstance(reply, Waiting):
            self.paces(reply.pace_ms)
        if isinstance(reply, Reserved):
            assert reply.grant.class_[0] == request.class_
            assert reply.grant.instance == request.instance
        self.hears()

    @rule(index=INDEX, output=st.integers(0, 12), rare=INDEX)
    def checkpoint(self, index: int, output: int, rare: int) -> None:
        self.record(
            self.pick(index, *(("open",) if rare else ("waiting", "granted", "settled"))), output, ("", "")
        )

    @rule(index=INDEX, output=st.integers(0, 12), instance=st.sampled_from(INSTANCES), flex=st.booleans())
    def move(self, index: int, output: int, instance: str, flex: bool) -> None:
        """Its instance has died, or what is said comes late: it is there already, or has given its place
        up.
        """
        names = [each.request_id for each in self.model.requests.values() if not flex or each.class_ == "f"]
        open_ = [name for name in names if self.model.requests[name].state == "open"]
        if open_:
            self.record(open_[index % len(open_)], output, (instance, "e-9"))

    @rule(index=INDEX, output=st.integers(0, 12), crowd=st.integers(0, 4))
    def pause(self, index: int, output: int, crowd: int) -> None:
        """A request that was asked to is preempted, or another one, for a reason of its gateway. `crowd`: how
        many arrive for its slot.
        """
        if crowd:
            self.arrive(Tier.FLEX, 1_000, 1, 3, crowd, 0)
        flex = [each for each in self.model.requests.values() if each.state == "open" and each.class_ == "f"]
        asked = [each for each in flex if each.request_id in self.told and not each.paused] or flex
        if asked:
            self.record(asked[index % len(asked)].request_id, output, pauses=True)

    def record(
        self, request_id: str, output: int, moved_to: tuple[str, str] = ("", ""), pauses: bool = False
    ) -> None:
        known = self.model.requests.get(request_id)
        if known is not None:
            output = max(output, known.output)
        usage = Tokens(0, 0, output)
        reply = self.real(request_id).checkpoint(usage, 4_000 * output, moved_to=moved_to, pauses=pauses)
        if known is None or known.state in ("waiting", "granted"):
            assert isinstance(reply, Missing)
        elif known.state == "settled":
            assert isinstance(reply, AlreadySettled)
        else:
            assert isinstance(reply, Renewed)
            known.output, known.lapsed = output, False
            self.model.use(known, max(known.charged_mu, 4_000 * output))
            if pauses:
                self.model.pause(known)
            else:
                self.model.move(known, moved_to[0])
        self.hears()

    @rule(index=INDEX, cost_mu=COSTS, rare=INDEX, cancelled=st.booleans())
    def end(self, index: int, cost_mu: int, rare: int, cancelled: bool) -> None:
        self.settle(
            self.pick(index, *(("open",) if rare else ("waiting", "granted", "settled"))), cost_mu, cancelled
        )

    @rule(index=INDEX, cost_mu=COSTS, cancelled=st.booleans())
    def end_all_its_parts(self, index: int, cost_mu: int, cancelled: bool) -> None:
        paused = [each.request_id for each in self.model.requests.values() if each.paused]
        request_id = paused[index % len(paused)] if paused else "r0"
        first = request_id.partition("-")[0]
        for each in list(self.model.requests.values()):
            if each.state == "open" and each.request_id.partition("-")[0] == first:
                self.settle(each.request_id, cost_mu, cancelled)

    def settle(self, request_id: str, cost_mu: int, cancelled: bool) -> None:
        known = self.model.requests.get(request_id)
        reply = self.real(request_id).settle(cost_mu, cancelled=cancelled)
        if known is not None and known.state == "settled":
            assert isinstance(reply, AlreadySettled)
            return
        assert isinstance(reply, Settled)
        assert reply.orphan == (known is None or known.state != "open")
        self.events += 1
        self.model.settle(request_id, cost_mu, self.real(request_id).tenant, cancelled=cancelled)
        self.paces(reply.pace_ms)
        self.hears()

    @rule(index=INDEX, states=st.sampled_from([("waiting",), ("granted",), ("open",)]))
    def give_up(self, index: int, states: tuple[str, ...]) -> None:
        self.leave(self.pick(index, *states))

    @rule(index=INDEX)
    def withdraw(self, index: int) -> None:
        self.leave(self.pick(index, "open"), withdrawn=True)

    def leave(self, request_id: str, *, withdrawn: bool = False) -> None:
        left = self.real(request_id).leave(withdrawn=withdrawn)
        assert left.dropped == self.model.leave(request_id, withdrawn=withdrawn)
        self.hears()

    @rule(index=INDEX, states=st.sampled_from([("waiting",), ("granted",), ("open",)]), reaped=st.booleans())
    def lapse(self, index: int, states: tuple[str, ...], reaped: bool) -> None:
        request_id = self.pick(index, *states)
        known = self.model.requests.get(request_id)
        if known is not None and known.state != "settled":
            self.real(request_id).let_lease_pass()
            known.lapsed = True
            if reaped:
                self.reap(index, states)

    @rule(index=INDEX, states=st.sampled_from([("waiting",), ("granted",), ("open",), ("settled",)]))
    def reap(self, index: int, states: tuple[str, ...]) -> None:
        lapsed = [
            each.request_id for each in self.model.requests.values() if each.lapsed and each.state in states
        ]
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
            self.model.settle(request_id, 0, known.tenant)
            self.paces(reply.pace_ms)
        else:
            assert isinstance(reply, Dropped)
            self.model.leave(request_id)
        self.hears()

    @rule(
        first=st.integers(0, 5),
        second=st.integers(0, 5),
        flex=st.integers(0, 5),
        reads=st.tuples(RATES, RATES),
        weights=st.tuples(WEIGHTS, WEIGHTS, WEIGHTS),
    )
    def new_room(
        self, first: int, second: int, flex: int, reads: tuple[int, int], weights: tuple[int, int, int]
    ) -> None:
        self.weights = dict(zip("abc", weights, strict=True))
        self.model.room = {"i-1": (first, min(first, flex)), "i-2": (second, min(second, flex))}
        self.model.reads_mu_s = dict(zip(INSTANCES, reads, strict=True))
        plan.set_room(self.client, self.model.room)
        for name, rate in self.model.reads_mu_s.items():
            self.client.hset(redis_keys.room(CELL), f"w:{name}", rate)
        self.plans({})

    @rule(instance=st.sampled_from(INSTANCES), sequences=st.lists(st.integers(1, 3), min_size=1, max_size=3))
    def an_owner_comes_back(self, instance: str, sequences: list[int]) -> None:
        """In each round of the allocator so many more are to go."""
        for each in sequences:
            if all(self.model.requests[name].sequences == 1 for name in self.model.lent[instance]):
                self.client.hset(redis_keys.room(CELL), f"g:{instance}", each)
                self.plans({instance: each})

    @rule(instance=st.sampled_from(INSTANCES), times=st.sampled_from([1, 9]))
    def what_is_read_makes_room(self, instance: str, times: int) -> None:
        at_us = self.client.hget(redis_keys.flight(CELL), f"pt:{instance}")
        if at_us is not None:
            self.client.hset(
                redis_keys.flight(CELL), f"pt:{instance}", int(float(at_us)) - times * READ_S * 1_000_000
            )
        self.model.read_on(instance, times * READ_S)
        *_, pace_ms, _ = execute(self.client, grant_call(CELL, recount=False))
        self.model.grant_all()
        self.paces(pace_ms)
        self.hears()

    @rule()
    def a_gateway_comes_or_goes(self) -> None:
        if self.other is None:
            self.other = plan.Listener(self.client, "gw-2").__enter__()
            self.model.listening.add("gw-2")
        else:
            self.other.__exit__(None, None, None)
            self.other = None
            self.model.listening.remove("gw-2")
        channel, heard_by = redis_keys.wake_channel("gw-2"), int(self.other is not None)
        wait_until(
            lambda: self.client.pubsub_numsub(channel) == [(channel, heard_by)], "change of who listens"
        )

    @invariant()
    def places_and_lines_are_the_models(self) -> None:
        model, client = self.model, self.client
        assert plan.flight(client) == {name: count for name, count in model.flight.items() if count}
        for class_ in "of":
            waiting = {t: model.virtual[t] for t in "abc" if model.queue(class_, t)}
            assert plan.tenants_waiting(client, class_) == waiting
            for tenant in "abc":
                assert plan.queue(client, tenant, class_) == model.queue(class_, tenant)
        for instance in INSTANCES:
            lent: Any = client.zrange(LENT + instance, 0, -1, withscores=True)
            assert dict(lent) == model.lent[instance]
            reading_s = client.time()[0] - plan.flight_field(client, f"pt:{instance}") / 1e6
            unread_mu = max(
                0.0, plan.flight_field(client, f"pl:{instance}") - model.reads_mu_s[instance] * reading_s
            )
            assert model.unread_mu(instance) - 2 * EXAMPLE_S < unread_mu <= model.unread_mu(instance) + 2
        opened = set(client.zrange(redis_keys.open_requests(CELL), 0, -1))
        assert opened == {each.request_id for each in model.requests.values() if each.state != "settled"}
        held = client.pipeline(transaction=False)
        for name in model.requests:
            held.hmget(redis_keys.reservation(CELL, name), "state", "inst")
        for (state, instance), request in zip(held.execute(), model.requests.values(), strict=True):
            assert state == request.state
            assert state != "open" or instance == request.instance

    @invariant()
    def levels_and_counters_are_the_models(self) -> None:
        model, client = self.model, self.client
        for tenant in "abc":
            first = self.real(f"r{'abc'.index(tenant)}")
            assert plan.virtual(client, tenant) == model.virtual.get(tenant, 0)
            assert first.tenant_level("c") == first.key_level("c") == model.opened(tenant)
            assert max(0, model.cancels[tenant] - 0.5) <= first.tenant_level("x") <= model.cancels[tenant]
        assert plan.flight_field(client, "vl") == model.last_left
        assert (
            plan.flight_field(client, "used")
            == model.used_mu
            == charged_by_events(client) + model.charged_so_far_mu()
        )
        assert plan.contract_field(client, "c", "used") == model.contract_used_mu
        assert plan.contract_field(client, "c", "borrowed") == model.borrowed_mu
        assert self.real("r2").tenant_level("u") == model.units_mu["c"]
        assert all(
            plan.contract_field(client, "c", f"limited:{name}") == n for name, n in model.limited.items()
        )
        assert (
            model.contract_level_mu - EXAMPLE_S
            < plan.contract_field(client, "c", "u")
            <= model.contract_level_mu
        )

    @invariant()
    def everything_ends_by_itself_but_the_usage(self) -> None:
        keys = [key for key in self.client.keys("*") if key != redis_keys.intact(CELL)]
        ends = self.client.pipeline(transaction=False)
        for key in keys:
            ends.ttl(key)
        without = [key for key, left_s in zip(keys, ends.execute(), strict=True) if left_s < 0]
        assert without in ([], [redis_keys.usage_stream(CELL)])
        assert len(usage_events(self.client)) == self.events

    def teardown(self) -> None:
        # First of all: a step that fails must leave nobody who listens to the next example.
        if self.other is not None:
            self.a_gateway_comes_or_goes()
        for known in list(self.model.requests.values()):
            if known.state == "open":
                self.settle(known.request_id, 3_000, cancelled=False)
        while any(each.state != "settled" for each in self.model.requests.values()):
            self.leave(self.pick(0, "waiting", "granted"))
        self.places_and_lines_are_the_models()
        self.levels_and_counters_are_the_models()
        assert plan.flight(self.client) == {}
        assert self.client.keys("*:w*") == []
        assert self.client.zcard(redis_keys.open_requests(CELL)) == 0
        assert self.client.keys("*:lent:*") == []


def test_any_order_of_steps_keeps_room_line_and_counters_right(
    valkey: redis.Redis, gateway: plan.Listener
) -> None:
    CapacityMachine.client = valkey
    CapacityMachine.gateway = gateway
    checks: Any = list(HealthCheck)
    chosen = settings(
        max_examples=examples(40), stateful_step_count=50, deadline=None, suppress_health_check=checks
    )
    run_state_machine_as_test(CapacityMachine, settings=chosen)
