"""Usage events for the tests of billing."""

from msgspec.structs import asdict, replace

from billing.wire.attribution import attribute
from billing.wire.ending import Ending
from billing.wire.tokens import Delivered, Tokens, Weights
from billing.wire.usage_event import CapacityClass, EventHead, UsageEvent, UsageSource

WEIGHTS = Weights(1, 1000, 100, 4000)


def head(request_id: str = "req_1", **changes: object) -> EventHead:
    """A head with the given fields changed."""
    base = EventHead(
        request_id=request_id, tenant="ten_a", project="prj_a", key_id="key_a", model="m1", pool="m1",
        cell="m1", instance="i1", epoch="e1", route="chat", stream=True, class_=CapacityClass.ON_DEMAND,
        contract=None, weights=WEIGHTS, samples=1, started_ms=1_700_000_000_000, gateway="gw_1",
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def event(
    request_id: str = "req_1",
    tokens: tuple[int, ...] = (10, 0, 5),
    ending: Ending = Ending.COMPLETE,
    anomaly: str | None = None,
    source: UsageSource = UsageSource.ENGINE,
    ended_ms: int | None = None,
    **changes: object,
) -> UsageEvent:
    """An event whose engine reported `tokens` (prompt, cached, output, written), attributed by the product's
    own rule.
    """
    made = head(request_id, **changes)
    usage = Tokens(*tokens)
    shares = attribute(
        ending, usage, anomaly=anomaly, shared_prompt=(made.samples - 1) * usage.prompt if usage.output else 0
    )
    return UsageEvent(
        **asdict(made), ending=ending, usage_source=source, anomaly=anomaly, produced=shares.produced,
        billed=shares.billed, absorbed=shares.absorbed, units_mu=WEIGHTS.cost_mu(usage), http_status=200,
        ended_ms=made.started_ms + 1500 if ended_ms is None else ended_ms,
        first_token_ms=made.started_ms + 200, delivered=Delivered(usage.output), waited_ms=0,
    )  # fmt: skip
