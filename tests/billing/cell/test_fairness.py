"""The order of the queue: work done in proportion to weights, no credit for idling, one counter for
on-demand and flex (VTC, arXiv 2401.00588).
"""

import random

import pytest
import redis

from billing.cell.replies import Reserved, Waiting
from billing.cell.scripts import Tier
from billing.wire.tokens import Tokens
from tests.billing.cell.plan import (
    Listener,
    flight_field,
    set_room,
    tenants_waiting,
    virtual,
    waits,
)
from tests.billing.cell.requests import WEIGHTS, CellRequest

ROOM = 4
FIRST_MU = 10_000
LARGEST = Tokens(0, 0, 200)
# Of VTC: what one tenant may have in flight beyond what it was charged at first, and one request more, on
# either side.
BOUND_MU = 2 * (ROOM + 1) * (FIRST_MU + WEIGHTS.cost_mu(LARGEST))


class Crowd:
    """Tenants that always have requests waiting, of random sizes, on one instance; each step ends one
    request of those in flight.
    """

    def __init__(self, client: redis.Redis, gateway: Listener, weights: dict[str, int]) -> None:
        self.client = client
        self.gateway = gateway
        self.weights = weights
        self.chance = random.Random(11)
        self.number = 0
        self.work_mu = dict.fromkeys(weights, 0)
        self.mine: dict[str, CellRequest] = {}
        self.open: list[str] = []

    def arrive(self, tenant: str) -> None:
        self.number += 1
        request_id = f"{tenant}-{self.number}"
        request = CellRequest(
            client=self.client,
            request_id=request_id,
            tenant=tenant,
            key_id=tenant,
            weight=self.weights[tenant],
            wait_max=100,
        )
        self.mine[request_id] = request
        if isinstance(request.reserve(FIRST_MU), Reserved):
            self.open.append(request_id)

    def end_one(self) -> str:
        """Stream and settle one of those in flight, take what was granted for it. Returns whose it was."""
        request = self.mine[self.open.pop(self.chance.randrange(len(self.open)))]
        usage = Tokens(0, 0, self.chance.randint(0, LARGEST.output))
        request.checkpoint(Tokens(0, 0, usage.output // 2), WEIGHTS.cost_mu(Tokens(0, 0, usage.output // 2)))
        request.settle(WEIGHTS.cost_mu(usage), usage)
        self.work_mu[request.tenant] += WEIGHTS.cost_mu(usage)
        for request_id in self.gateway.woken():
            assert isinstance(self.mine[request_id].reserve(FIRST_MU), Reserved)
            self.open.append(request_id)
        return request.tenant

    def run(self, steps: int, tenants: list[str]) -> float:
        """Each tenant replaces what ends. Returns the greatest difference of work over weight between any
        two of them meanwhile.
        """
        before = dict(self.work_mu)
        greatest = 0.0
        for _ in range(steps):
            self.arrive(self.end_one())
            shares = [(self.work_mu[each] - before[each]) / self.weights[each] for each in tenants]
            greatest = max(greatest, max(shares) - min(shares))
        return greatest


@pytest.mark.parametrize("weights", [{"a": 4, "b": 1}, {"a": 1, "b": 1, "c": 1}, {"a": 10, "b": 3, "c": 1}])
def test_work_over_weight_differs_by_no_more_than_what_is_in_flight(
    valkey: redis.Redis, gateway: Listener, weights: dict[str, int]
) -> None:
    set_room(valkey, {"i-1": (ROOM, ROOM)})
    crowd = Crowd(valkey, gateway, weights)
    for _ in range(2 * ROOM):
        for tenant in weights:
            crowd.arrive(tenant)
    greatest = crowd.run(400, list(weights))
    assert greatest <= BOUND_MU
    assert sum(crowd.work_mu.values()) > 10 * BOUND_MU
    total = sum(crowd.work_mu.values())
    for tenant, weight in weights.items():
        assert crowd.work_mu[tenant] / total == pytest.approx(weight / sum(weights.values()), abs=0.05)


def test_a_tenant_that_idled_has_no_credit_when_it_comes_back(valkey: redis.Redis, gateway: Listener) -> None:
    set_room(valkey, {"i-1": (ROOM, ROOM)})
    crowd = Crowd(valkey, gateway, {"a": 1, "b": 1, "late": 1})
    for _ in range(2 * ROOM):
        crowd.arrive("a")
        crowd.arrive("b")
    crowd.run(200, ["a", "b"])
    for _ in range(2 * ROOM):
        crowd.arrive("late")
    assert crowd.run(200, ["a", "b", "late"]) <= BOUND_MU


def test_many_small_requests_get_as_much_as_few_large_ones(valkey: redis.Redis, gateway: Listener) -> None:
    set_room(valkey, {"i-1": (1, 1)})
    small, large = 0, 0
    holder = CellRequest(client=valkey, request_id="holder", tenant="holder")
    holder.reserve()
    mine = {f"s{n}": waits(valkey, f"s{n}", "small") for n in range(60)}
    mine |= {f"l{n}": waits(valkey, f"l{n}", "large") for n in range(10)}
    holder.settle()
    for _ in range(44):
        [request_id] = gateway.woken()
        mine[request_id].reserve(1_000)
        cost_mu = 10_000 if request_id.startswith("s") else 100_000
        small, large = small + cost_mu * (cost_mu == 10_000), large + cost_mu * (cost_mu == 100_000)
        mine[request_id].settle(cost_mu)
    assert small == 40 * 10_000
    assert large == 4 * 100_000


def test_a_newcomer_is_lifted_to_the_least_of_those_who_wait(valkey: redis.Redis, full: CellRequest) -> None:
    for tenant in ("a", "b"):
        waits(valkey, f"{tenant}-w", tenant)
    for tenant, work_mu in (("a", 700_000), ("b", 500_000)):
        CellRequest(client=valkey, request_id=tenant, tenant=tenant, sequences=0).reserve(work_mu)
    assert tenants_waiting(valkey) == {"b": 500_000, "a": 700_000}
    waits(valkey, "n", "new")
    assert tenants_waiting(valkey) == {"b": 500_000, "new": 500_000, "a": 700_000}
    assert virtual(valkey, "new") == 500_000


def test_a_newcomer_when_nobody_waits_is_lifted_to_who_left_last(
    valkey: redis.Redis, gateway: Listener
) -> None:
    set_room(valkey, {"i-1": (2, 2)})
    for n in range(5):
        request = CellRequest(client=valkey, request_id=f"a{n}", tenant="a")
        request.reserve(100_000)
        request.settle(100_000)
    assert flight_field(valkey, "vl") == 400_000
    CellRequest(client=valkey, request_id="b0", tenant="b").reserve(0)
    assert virtual(valkey, "b") == 400_000


def test_what_needs_no_room_does_not_lower_what_newcomers_are_lifted_to(valkey: redis.Redis) -> None:
    for n in range(5):
        CellRequest(client=valkey, request_id=f"a{n}", tenant="a").reserve(100_000)
    CellRequest(client=valkey, request_id="count", tenant="b", sequences=0).reserve()
    CellRequest(client=valkey, request_id="b", tenant="b").reserve()
    assert virtual(valkey, "b") == 400_000
    assert flight_field(valkey, "vl") == 400_000


def test_flex_that_waited_long_gives_no_credit_to_on_demand(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    waits(valkey, "f", "flexible", asked=Tier.FLEX)
    busy = CellRequest(client=valkey, request_id="busy", tenant="busy", sequences=0)
    busy.reserve(900_000)
    waits(valkey, "busy-w", "busy")
    full.settle()
    CellRequest(client=valkey, request_id="busy-w", tenant="busy").reserve(1_000)
    CellRequest(client=valkey, request_id="busy-w", tenant="busy").settle(1_000)
    assert gateway.woken() == ["busy-w", "f"]
    waits(valkey, "n", "new")
    assert virtual(valkey, "new") >= virtual(valkey, "busy") - 1_000


def test_on_demand_and_flex_are_one_account(valkey: redis.Redis, full: CellRequest) -> None:
    """Work of one class counts in the queue of the other, at once."""
    waits(valkey, "f", asked=Tier.FLEX)
    waits(valkey, "o")
    request = CellRequest(client=valkey, request_id="z", sequences=0)
    request.reserve(50_000)
    request.checkpoint(Tokens(0, 0, 20), 80_000)
    assert tenants_waiting(valkey, "o") == tenants_waiting(valkey, "f") == {"acme": virtual(valkey, "acme")}
    request.settle(10_000)
    assert tenants_waiting(valkey, "o") == tenants_waiting(valkey, "f") == {"acme": 10_000}


def test_what_was_charged_too_much_comes_back_to_the_counter(valkey: redis.Redis) -> None:
    request = CellRequest(client=valkey, request_id="r", weight=4)
    request.reserve(40_000)
    assert virtual(valkey, "acme") == 10_000
    request.checkpoint(Tokens(0, 0, 40), 160_000)
    assert virtual(valkey, "acme") == 40_000
    request.settle(20_000)
    assert virtual(valkey, "acme") == 5_000


def test_reserved_work_is_no_debt_in_the_line(valkey: redis.Redis) -> None:
    valkey.hset(
        "{c:pool-1}:q:acme",
        mapping={"id": "c", "rate": 1, "burst": 10**9, "of": "reject", "spill": -1, "end": 10**14},
    )
    CellRequest(client=valkey, request_id="r").reserve(50_000)
    assert virtual(valkey, "acme") == 0


def test_a_new_weight_counts_from_the_next_request_on(valkey: redis.Redis, gateway: Listener) -> None:
    first = CellRequest(client=valkey, request_id="a", weight=1)
    first.reserve(10_000)
    first.settle(10_000)
    second = CellRequest(client=valkey, request_id="b", weight=10)
    second.reserve(10_000)
    assert virtual(valkey, "acme") == 11_000
    second.settle(0)
    assert virtual(valkey, "acme") == 10_000


def test_a_weight_that_changes_while_a_request_is_open_gives_back_what_was_charged(
    valkey: redis.Redis,
) -> None:
    heavy = CellRequest(client=valkey, request_id="heavy", weight=100)
    heavy.reserve(1_000_000)
    CellRequest(client=valkey, request_id="next", weight=1).reserve(0)
    heavy.settle(0)
    assert virtual(valkey, "acme") == 0


def test_a_counter_lasts_while_its_tenant_waits(valkey: redis.Redis, full: CellRequest) -> None:
    """The bucket of a tenant with nothing open lives a minute; who waits renews it as it renews its lease."""
    busy = CellRequest(client=valkey, request_id="busy", sequences=0)
    busy.reserve(70_000)
    waits(valkey, "f", asked=Tier.FLEX)
    busy.settle(70_000)
    assert valkey.pttl(busy.keys.tenant_bucket) <= 60_000
    waits(valkey, "f", asked=Tier.FLEX)
    assert valkey.pttl(busy.keys.tenant_bucket) > 6 * 86_400_000


def test_a_lost_bucket_comes_back_with_the_counter_of_the_line(
    valkey: redis.Redis, gateway: Listener, full: CellRequest
) -> None:
    CellRequest(client=valkey, request_id="z", sequences=0).reserve(70_000)
    waits(valkey, "r")
    valkey.delete(full.keys.tenant_bucket, CellRequest(client=valkey, request_id="r").keys.tenant_bucket)
    full.settle()
    CellRequest(client=valkey, request_id="r").leave()
    # Given back to a bucket that is not there: it must not come to be, without an end.
    assert valkey.keys("*:b:*") == []


def test_a_tenant_whose_bucket_was_lost_keeps_its_place_in_the_line(
    valkey: redis.Redis, full: CellRequest
) -> None:
    CellRequest(client=valkey, request_id="z", sequences=0).reserve(70_000)
    waits(valkey, "r1")
    valkey.delete(CellRequest(client=valkey, request_id="r1").keys.tenant_bucket)
    waits(valkey, "r2")
    assert tenants_waiting(valkey) == {"acme": 70_000}
    assert virtual(valkey, "acme") == 70_000


def test_a_tenant_in_line_gains_nothing_by_asking_again(valkey: redis.Redis, full: CellRequest) -> None:
    request = waits(valkey, "r")
    before = tenants_waiting(valkey)
    for _ in range(3):
        assert isinstance(request.reserve(1_000), Waiting)
        request.leave()
        waits(valkey, "r")
    assert tenants_waiting(valkey) == before
