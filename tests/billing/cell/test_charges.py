"""What an ended request counts against limits is the same whoever ends it: its gateway, or the reaper after
that gateway has died.
"""

from typing import Any

import orjson
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict

from billing.cell.execute import execute
from billing.cell.replies import Reserved
from billing.cell.scripts import checkpoint_call, settle_call
from billing.wire.attribution import attribute, charged
from billing.wire.ending import Ending
from billing.wire.limits import Limits
from billing.wire.tokens import Delivered, Tokens
from billing.wire.usage_event import UsageEvent, UsageSource
from tests.billing.cell.requests import LEASE_MS, WEIGHTS, CellRequest, empty, usage_events
from tests.examples import examples

# Of days, so that next to nothing drains.
LIMITS = Limits.of(tokens_per_day=10_000, units_per_day=1_000)
COUNTS = st.integers(0, 500)
USAGES = st.builds(lambda cached, rest, output: Tokens(cached + rest, cached, output), COUNTS, COUNTS, COUNTS)


def admitted(client: redis.Redis, request_id: str, tokens: int) -> CellRequest:
    """A request that has reserved so many tokens; the only one of its tenant and key."""
    made = CellRequest(
        client=client, request_id=request_id, tenant=request_id, key_id=request_id, tenant_limits=LIMITS,
        key_limits=LIMITS, tokens=tokens,
    )  # fmt: skip
    assert isinstance(made.reserve(tokens), Reserved)
    return made


def event_of(request: CellRequest, ending: Ending, usage: Tokens, **more: Any) -> UsageEvent:
    share = attribute(ending, usage, **more)
    return UsageEvent(
        **asdict(request.head), ending=ending, usage_source=UsageSource.ENGINE, anomaly=more.get("anomaly"),
        produced=share.produced, billed=share.billed, absorbed=share.absorbed, http_status=200,
        ended_ms=1_780_000_001_000, first_token_ms=None, waited_ms=0, delivered=Delivered(0),
        units_mu=WEIGHTS.cost_mu(charged(ending, share.produced, share.billed)),
    )  # fmt: skip


def settle(request: CellRequest, event: UsageEvent) -> None:
    call = settle_call(
        request.keys, cost_mu=event.units_mu, tokens=event.charged_tokens, event=event.to_json()
    )
    execute(request.client, call)


def die(request: CellRequest, event: UsageEvent, crash_event: bytes) -> None:
    """Its gateway writes this checkpoint and dies; the reaper comes."""
    call = checkpoint_call(
        request.keys, lease_ms=LEASE_MS, cost_mu=0, produced=event.produced, delivered_output=0,
        crash_event=crash_event,
    )  # fmt: skip
    execute(request.client, call)
    request.let_lease_pass()
    request.reap()


def levels(request: CellRequest) -> dict[str, float]:
    names = ("tokens:86400", "units:86400")
    keys = request.keys.tenant_bucket, request.keys.key_bucket
    found = {key: request.client.hmget(key, *names) for key in keys}
    assert found[keys[0]] == found[keys[1]]
    return {name: float(level or 0) for name, level in zip(names, found[keys[0]], strict=True)}


@settings(
    max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(list(Ending)),
    USAGES,
    st.integers(0, 2_000),
    COUNTS,
    st.sampled_from([None, "usage_missing"]),
)
def test_the_reaper_charges_what_the_gateway_would_have(
    valkey: redis.Redis, ending: Ending, usage: Tokens, reserved: int, shared: int, anomaly: str | None
) -> None:
    empty(valkey)
    lives, dies = admitted(valkey, "lives", reserved), admitted(valkey, "dies", reserved)
    event = event_of(lives, ending, usage, shared_prompt=shared, anomaly=anomaly)
    settle(lives, event)
    died = event_of(dies, ending, usage, shared_prompt=shared, anomaly=anomaly)
    die(dies, died, died.crash_event_json())
    assert levels(dies) == pytest.approx(levels(lives), abs=20)
    assert levels(lives)["tokens:86400"] == pytest.approx(event.charged_tokens, abs=1)
    assert levels(lives)["units:86400"] == pytest.approx(event.units_mu, abs=20)
    recorded = valkey.xrange(dies.usage_stream)[-1][1]["e"]
    assert UsageEvent.from_json(recorded).charged_tokens == event.charged_tokens


@given(st.sampled_from(sorted(Ending)), USAGES)
@settings(
    max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_crash_event_of_the_version_before_charges_what_is_billed(
    valkey: redis.Redis, ending: Ending, usage: Tokens
) -> None:
    """It has no figure for tokens. Of requests that an engine refused it never knew any tokens."""
    empty(valkey)
    one = admitted(valkey, "r", 1_000)
    event = event_of(one, ending, Tokens(0, 0, 0) if ending is Ending.REFUSED_BY_ENGINE else usage)
    crash_event = orjson.loads(event.crash_event_json())
    del crash_event["charged_tokens"]
    die(one, event, orjson.dumps(crash_event))
    assert levels(one)["tokens:86400"] == pytest.approx(event.charged_tokens, abs=1)
    assert [each["ending"] for each in usage_events(valkey)] == [ending]
