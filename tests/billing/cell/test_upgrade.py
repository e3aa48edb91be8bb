"""An upgrade: gateways of the version before and of this one serve the same cell at once, each through its
own scripts.

The texts in `earlier/` are those of the version before, as it sent them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from billing.cell.replies import (
    AlreadySettled,
    Dropped,
    LimitReached,
    Missing,
    Renewed,
    Replayed,
    Reserved,
    Settled,
)
from billing.wire.limits import MINUTE_S, WHILE_OPEN, LimitKind, Limits
from billing.wire.tokens import Tokens
from tests.billing.cell.plan import Listener, flight, set_room, virtual
from tests.billing.cell.requests import CellRequest, limits_of, usage_events

EARLIER = Path(__file__).parent / "earlier"
RESERVE, SETTLE = ((EARLIER / f"{name}.txt").read_text() for name in ("reserve", "settle"))
LIMITS = limits_of(requests=6, units_mu=60_000, concurrency=6)
SCARCE = [limits_of(requests=6), limits_of(units_mu=6_000), limits_of(concurrency=6)]


@dataclass(frozen=True, slots=True)
class Earlier:
    """The same request in a gateway of the version before. Steps answer as its scripts did."""

    now: CellRequest

    def reserve(self, cost_mu: int) -> str:
        request, keys = self.now, self.now.keys
        return self._run(
            RESERVE, (request.reservation, keys.tenant_bucket, keys.key_bucket, keys.open_requests),
            request.request_id, 10_000, cost_mu, *_three(request.tenant_limits), *_three(request.key_limits),
            request.head.admission_json(), b'{"units_mu":0}', request.tenant, request.asked.value, 1,
            request.weight, request.sequences, request.gateway, request.wait_max, request.cancels_per_minute,
            0, 0, 0, *(word for candidate in request.candidates for word in candidate),
        )  # fmt: skip

    def checkpoint(self, output: int, cost_mu: int) -> str:
        return self._settle(
            "checkpoint", 10_000, cost_mu, 0, 0, output, output, b'{"units_mu":0}', b"", "", "", 0
        )

    def settle(self, cost_mu: int, *, cancelled: bool = False) -> str:
        return self._settle(
            "settle", 0, cost_mu, 0, 0, 0, 0, b'{"class":"on_demand"}', b"", "", "", int(cancelled)
        )

    def leave(self) -> str:
        return self._settle("leave", 0, 0)

    def reap(self) -> str:
        return self._settle("reap", 0)

    def _settle(self, mode: str, *arguments: int | str | bytes) -> str:
        now, keys = self.now, self.now.keys
        names = (
            now.reservation, keys.tenant_bucket, keys.key_bucket, keys.open_requests, now.usage_stream,
        )  # fmt: skip
        return self._run(SETTLE, names, mode, self.now.request_id, *arguments)

    def _run(self, text: str, keys: tuple[str, ...], *arguments: int | str | bytes) -> str:
        reply: Any = self.now.client.eval(text, len(keys), *keys, *arguments)
        return str(reply[0])


def _three(limits: Limits) -> list[int]:
    asked = ((LimitKind.REQUESTS, MINUTE_S), (LimitKind.UNITS, MINUTE_S), (LimitKind.CONCURRENCY, WHILE_OPEN))
    return [-1 if (amount := limits.amount(*each)) is None else amount for each in asked]


def request(client: redis.Redis, name: str, limits: Limits = LIMITS, **more: Any) -> CellRequest:
    return CellRequest(client=client, request_id=name, tenant_limits=limits, **more)


@pytest.mark.parametrize("limits", SCARCE)
def test_both_admit_together_what_the_limit_says(valkey: redis.Redis, limits: Limits) -> None:
    for number in range(3):
        assert Earlier(request(valkey, f"e{number}", limits)).reserve(1_000) == "reserved"
        assert isinstance(request(valkey, f"n{number}", limits).reserve(1_000), Reserved)
    assert Earlier(request(valkey, "e", limits)).reserve(1_000) == "refused"
    assert isinstance(request(valkey, "n", limits).reserve(1_000), LimitReached)


@pytest.mark.parametrize("limits", [Limits(), LIMITS, limits_of(units_mu=60_000)])
@pytest.mark.parametrize("earlier_reserves", [True, False])
def test_what_one_admitted_the_other_ends(
    valkey: redis.Redis, limits: Limits, earlier_reserves: bool
) -> None:
    set_room(valkey, {"i-1": (5, 5)})
    one = request(valkey, "r", limits, cancels_per_minute=60)
    if earlier_reserves:
        assert Earlier(one).reserve(5_000) == "reserved"
        assert isinstance(one.reserve(5_000), Replayed)
        assert isinstance(one.checkpoint(Tokens(0, 0, 2), 8_000), Renewed)
        assert isinstance(one.settle(9_000, cancelled=True), Settled)
        assert Earlier(one).settle(9_000) == "already_settled"
    else:
        assert isinstance(one.reserve(5_000), Reserved)
        assert Earlier(one).reserve(5_000) == "replayed"
        assert Earlier(one).checkpoint(2, 8_000) == "renewed"
        assert Earlier(one).settle(9_000, cancelled=True) == "settled"
    units_mu = 9_000 if limits.amount(LimitKind.UNITS, MINUTE_S) else 0
    assert one.tenant_level("u") == pytest.approx(units_mu, abs=600)
    assert one.tenant_level("c") == one.key_level("c") == 0
    assert one.tenant_level("x") == pytest.approx(1, abs=0.1)
    assert virtual(valkey, "acme") == 9_000
    assert flight(valkey) == {}
    assert len(usage_events(valkey)) == 1


@pytest.mark.parametrize("earlier_waits", [True, False])
def test_who_waits_in_one_is_granted_by_the_other(
    valkey: redis.Redis, gateway: Listener, earlier_waits: bool
) -> None:
    set_room(valkey, {"i-1": (1, 1)})
    holder = request(valkey, "holder", tenant="holder", key_id="holder")
    waiting = request(valkey, "w", wait_max=9)
    if earlier_waits:
        holder.reserve()
        assert Earlier(waiting).reserve(1_000) == "waiting"
        holder.settle()
        assert gateway.woken() == ["w"]
        assert Earlier(waiting).reserve(1_000) == "reserved"
    else:
        assert Earlier(holder).reserve(0) == "reserved"
        waiting.reserve(1_000)
        assert Earlier(holder).settle(0) == "settled"
        assert gateway.woken() == ["w"]
        assert isinstance(waiting.reserve(1_000), Reserved)
    assert flight(valkey) == {"o:i-1": 1}


def test_what_one_left_behind_the_other_reaps(valkey: redis.Redis, gateway: Listener) -> None:
    set_room(valkey, {"i-1": (1, 1)})
    dead, waits = request(valkey, "dead"), request(valkey, "waits", wait_max=9)
    assert Earlier(dead).reserve(1_000) == "reserved"
    assert Earlier(waits).reserve(1_000) == "waiting"
    for each in (dead, waits):
        each.let_lease_pass()
    assert isinstance(waits.reap(), Dropped)
    assert isinstance(dead.reap(), Settled)
    other = request(valkey, "other")
    other.reserve(1_000)
    other.let_lease_pass()
    assert Earlier(other).reap() == "settled"
    assert isinstance(other.reap(), AlreadySettled)
    assert Earlier(request(valkey, "none")).leave() == "missing"
    assert isinstance(request(valkey, "none").reap(), Missing)
