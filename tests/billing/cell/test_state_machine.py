"""Reserve and settle against a model in Python: any steps, in any order, repeated at will."""

import time

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from billing.cell.replies import (
    AlreadySettled,
    LimitReached,
    Missing,
    Renewed,
    Replayed,
    Reserved,
    Settled,
    Stale,
    StillLeased,
)
from billing.wire import redis_keys
from billing.wire.limits import MINUTE_S, WHILE_OPEN, LimitKind, Limits
from billing.wire.tokens import Tokens
from tests.billing.cell.requests import (
    CELL,
    WEIGHTS,
    CellRequest,
    age_bucket,
    charged_by_events,
    empty,
    limits_of,
    usage_events,
)
from tests.examples import examples

TENANT = limits_of(requests=6, units_mu=600_000, concurrency=4)
KEY = limits_of(units_mu=300_000, concurrency=3)


class Bucket:
    """A leaky bucket that only `age` drains; the real one has drained a little more by the clock."""

    def __init__(self, limits: Limits) -> None:
        self.max_requests = limits.amount(LimitKind.REQUESTS, MINUTE_S)
        self.max_mu = limits.amount(LimitKind.UNITS, MINUTE_S) or 0
        self.max_open = limits.amount(LimitKind.CONCURRENCY, WHILE_OPEN) or 0
        self.requests = self.units_mu = 0.0
        self.open = 0

    def age(self, seconds: float) -> None:
        self.requests = max(0.0, self.requests - (self.max_requests or 0) * seconds / 60)
        self.units_mu = max(0.0, self.units_mu - self.max_mu * seconds / 60)

    def fits(self, cost_mu: int, slack: float) -> bool:
        """Whether the request fits when the levels are lower by `slack`, a share of the limits."""
        return (
            self.open + 1 <= self.max_open
            and self.units_mu - slack * self.max_mu + cost_mu <= self.max_mu
            and (
                self.max_requests is None
                or self.requests - slack * self.max_requests + 1 <= self.max_requests
            )
        )


class CellMachine(RuleBasedStateMachine):
    """Requests r0…r7 of one tenant and key."""

    ids = Bundle("ids")
    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        empty(self.client)
        self.tenant, self.key = Bucket(TENANT), Bucket(KEY)
        self.began_at = time.monotonic()
        self.state: dict[str, str] = {}
        self.charged: dict[str, int] = {}
        self.used: dict[str, int] = {}
        self.lapsed: set[str] = set()
        self.recorded: dict[str, int] = {}

    def drift(self) -> float:
        """What part of its limit a bucket may have drained by itself since the example began."""
        return (time.monotonic() - self.began_at + 0.1) / 60

    def request(self, request_id: str) -> CellRequest:
        return CellRequest(client=self.client, request_id=request_id, tenant_limits=TENANT, key_limits=KEY)

    def charge(self, request_id: str, cost_mu: int) -> None:
        difference = cost_mu - self.charged.get(request_id, 0)
        self.charged[request_id] = cost_mu
        for bucket in (self.tenant, self.key):
            bucket.units_mu = max(0.0, bucket.units_mu + difference)

    def close(self, request_id: str, output: int) -> None:
        if self.state.get(request_id) == "open":
            self.tenant.open -= 1
            self.key.open -= 1
        self.state[request_id] = "settled"
        self.lapsed.discard(request_id)
        self.recorded[request_id] = output

    @rule(target=ids, number=st.integers(0, 7))
    def name(self, number: int) -> str:
        return f"r{number}"

    @rule(request_id=ids, cost_mu=st.sampled_from([0, 1_000, 90_000, 299_000, 300_001]))
    def reserve(self, request_id: str, cost_mu: int) -> None:
        reply = self.request(request_id).reserve(cost_mu)
        state = self.state.get(request_id)
        if state is not None:
            assert isinstance(reply, Replayed if state == "open" else AlreadySettled)
            return
        if self.tenant.fits(cost_mu, 0) and self.key.fits(cost_mu, 0):
            assert isinstance(reply, Reserved)
        elif not (self.tenant.fits(cost_mu, self.drift()) and self.key.fits(cost_mu, self.drift())):
            assert isinstance(reply, LimitReached)
            assert (reply.retry_after_ms is None) == (cost_mu > self.key.max_mu)
        if isinstance(reply, LimitReached):
            return
        self.state[request_id] = "open"
        self.used[request_id] = 0
        self.tenant.open += 1
        self.key.open += 1
        self.tenant.requests += 1
        self.charge(request_id, cost_mu)

    @rule(request_id=ids, output=st.integers(0, 40))
    def checkpoint(self, request_id: str, output: int) -> None:
        usage = Tokens(5, 0, output) if output else Tokens(0, 0, 0)
        cost_mu = WEIGHTS.cost_mu(usage)
        reply = self.request(request_id).checkpoint(usage, cost_mu)
        if self.state.get(request_id) != "open":
            assert isinstance(reply, AlreadySettled if request_id in self.state else Missing)
            return
        if output < self.used[request_id]:
            assert isinstance(reply, Stale)
            return
        assert isinstance(reply, Renewed)
        self.used[request_id] = output
        self.lapsed.discard(request_id)
        self.charge(request_id, max(self.charged[request_id], cost_mu))

    @rule(request_id=ids, cost_mu=st.sampled_from([0, 5_000, 120_000, 700_000]))
    def settle(self, request_id: str, cost_mu: int) -> None:
        reply = self.request(request_id).settle(cost_mu, Tokens(3, 0, 2))
        if self.state.get(request_id) == "settled":
            assert isinstance(reply, AlreadySettled)
            return
        assert isinstance(reply, Settled)
        assert reply.orphan == (request_id not in self.state)
        if self.client.exists(self.request(request_id).keys.tenant_bucket):
            self.charge(request_id, cost_mu)
        self.close(request_id, 2)

    @rule(request_id=ids)
    def reap(self, request_id: str) -> None:
        reply = self.request(request_id).reap()
        if self.state.get(request_id) != "open":
            assert isinstance(reply, AlreadySettled if request_id in self.state else Missing)
        elif request_id not in self.lapsed:
            assert isinstance(reply, StillLeased)
        else:
            assert isinstance(reply, Settled)
            self.charge(request_id, 0)
            self.close(request_id, self.used[request_id])

    @rule(request_id=ids)
    def lapse(self, request_id: str) -> None:
        if self.state.get(request_id) == "open":
            self.request(request_id).let_lease_pass()
            self.lapsed.add(request_id)

    @rule(seconds=st.sampled_from([1, 20, 61]))
    def age(self, seconds: int) -> None:
        request = self.request("r0")
        for bucket, key in ((self.tenant, request.keys.tenant_bucket), (self.key, request.keys.key_bucket)):
            if self.client.exists(key):
                age_bucket(self.client, key, seconds)
                bucket.age(seconds)

    @invariant()
    def concurrency_is_the_number_open(self) -> None:
        request = self.request("r0")
        opened = {request_id for request_id, state in self.state.items() if state == "open"}
        assert request.tenant_level("c") == request.key_level("c") == len(opened)
        assert set(self.client.zrange(request.keys.open_requests, 0, -1)) == opened

    @invariant()
    def levels_are_the_models(self) -> None:
        request = self.request("r0")
        for bucket, key in ((self.tenant, request.keys.tenant_bucket), (self.key, request.keys.key_bucket)):
            stored = self.client.hgetall(key)
            if not stored:
                continue
            # The stored level is as of its last write: drain it by what `age` has moved its clock since.
            seconds, micros = self.client.time()
            minutes = (seconds + micros / 1e6 - float(stored["t"]) / 1e6) / 60
            units_mu = max(0.0, float(stored["u"]) - bucket.max_mu * minutes)
            assert bucket.units_mu - self.drift() * bucket.max_mu - 1 <= units_mu <= bucket.units_mu + 1
            requests = max(0.0, float(stored["r"]) - (bucket.max_requests or 0) * minutes)
            assert bucket.requests - self.drift() * (bucket.max_requests or 0) - 0.01 <= requests
            assert requests <= bucket.requests + 0.01 or bucket.max_requests is None

    @invariant()
    def what_is_charged_is_what_the_events_say(self) -> None:
        open_mu = sum(self.charged[request_id] for request_id, state in self.state.items() if state == "open")
        assert (
            int(self.client.hget(redis_keys.flight(CELL), "used") or 0)
            == charged_by_events(self.client) + open_mu
        )

    @invariant()
    def every_ended_request_has_exactly_one_event(self) -> None:
        written = {event["request_id"]: event["produced"]["output"] for event in usage_events(self.client)}
        assert written == self.recorded
        assert len(usage_events(self.client)) == len(self.recorded)


def test_any_order_of_calls_keeps_quota_and_events_right(valkey: redis.Redis) -> None:
    CellMachine.client = valkey
    run_state_machine_as_test(
        CellMachine,
        settings=settings(
            max_examples=examples(60),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
