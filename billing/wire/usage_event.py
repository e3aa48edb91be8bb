"""The usage event: the immutable fact of one request. It owns the fields, their balance and their JSON; it
knows neither Redis nor SQL.

An event has a head, known when the request is reserved, and a tail, known when it has ended. A reservation
stores the head and a *crash event*: the tail that the reaper records if the gateway dies. The reaper's script
joins the two texts, so `EventHead.to_json` and `UsageEvent.crash_event_json` are JSON objects that can be
joined at their braces. Tokens are integers, times are ms since the epoch.
"""

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

import orjson

from billing.wire.attribution import charged
from billing.wire.ending import Ending, OtherReason, absorb_reason
from billing.wire.tokens import (
    Absorbed,
    AbsorbedTokens,
    Tokens,
    UsageEventError,
    Weights,
    check_counts,
)
from billing.wire.value import Value

EVENT_VERSION: Final = 1
# Fields that are counts: a request that was preempted and resumed has the sums of its parts.
ADDED_UP: Final = frozenset({"produced", "delivered", "billed", "absorbed", "units_mu", "waited_ms"})


class UsageSource(StrEnum):
    """Who counted the tokens. `engine`: the engine's final count. `checkpoint`: the engine's count so far.
    `counted`: our count of chunks. `unread`: the request was sent, and nothing came back. `none`: nothing was
    produced.
    """

    ENGINE = "engine"
    CHECKPOINT = "checkpoint"
    COUNTED = "counted"
    UNREAD = "unread"
    NONE = "none"


# The engine may have produced more than these say.
NOT_FINAL_SOURCES: Final = (UsageSource.CHECKPOINT, UsageSource.COUNTED, UsageSource.UNREAD)


class CapacityClass(StrEnum):
    """On whose capacity the request ran."""

    RESERVED = "reserved"
    ON_DEMAND = "on_demand"
    FLEX = "flex"


# Encoded, a member of an enum is asked for its value through Python.
_PLAIN: Final = {
    each: each.value for names in (Ending, OtherReason, UsageSource, CapacityClass) for each in names
}


class EventHead(Value, frozen=True, kw_only=True):
    """What is known of a request when it is reserved. A failover to another instance makes a new head."""

    request_id: str
    tenant: str
    project: str
    key_id: str
    model: str
    pool: str
    cell: str
    instance: str
    epoch: str
    route: str
    stream: bool
    class_: CapacityClass
    contract: str | None
    weights: Weights
    samples: int
    started_ms: int
    gateway: str

    def to_json(self) -> bytes:
        """The head as a JSON object."""
        return _json(_own_head(self) | _decided(self), self)

    def admission_json(self) -> bytes:
        """The head without class, contract, instance and epoch: the script that decides them adds them."""
        return _json(_own_head(self), self)

    def ended(
        self,
        *,
        ending: Ending,
        usage_source: UsageSource,
        produced: Tokens,
        billed: Tokens,
        absorbed: Absorbed,
        units_mu: int,
        http_status: int,
        ended_ms: int,
        first_token_ms: int | None = None,
        waited_ms: int = 0,
        delivered_output: int = 0,
        anomaly: str | None = None,
        decision: Mapping[str, Any] | None = None,
        ignored: tuple[str, ...] = (),
    ) -> "UsageEvent":
        """The event of this request with this ending."""
        return UsageEvent(
            request_id=self.request_id, tenant=self.tenant, project=self.project, key_id=self.key_id,
            model=self.model, pool=self.pool, cell=self.cell, instance=self.instance, epoch=self.epoch,
            route=self.route, stream=self.stream, class_=self.class_, contract=self.contract,
            weights=self.weights, samples=self.samples, started_ms=self.started_ms, gateway=self.gateway,
            first_token_ms=first_token_ms, ended_ms=ended_ms, waited_ms=waited_ms, ending=ending,
            usage_source=usage_source, anomaly=anomaly, produced=produced, delivered_output=delivered_output,
            billed=billed, absorbed=absorbed, units_mu=units_mu, http_status=http_status, decision=decision,
            ignored=ignored,
        )  # fmt: skip


class UsageEvent(EventHead, frozen=True, kw_only=True):
    """One request from reserve to its ending. produced = billed + absorbed, for the prompt and for the
    output.
    """

    first_token_ms: int | None
    ended_ms: int
    waited_ms: int
    ending: Ending
    usage_source: UsageSource
    anomaly: str | None
    produced: Tokens
    delivered_output: int
    billed: Tokens
    absorbed: Absorbed
    units_mu: int
    http_status: int
    # The reservation was gone when it settled: Redis had lost it, the tokens were not lost.
    orphan: bool = False
    # Why it was admitted as it was (docs/interfaces.md §7).
    decision: Mapping[str, Any] | None = None
    # Names of ignored fields of the request (docs/fields.md); their writer bounds them.
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_counts(self.delivered_output, self.units_mu, self.waited_ms)
        if self.produced.prompt != self.billed.prompt + self.absorbed.prompt:
            raise UsageEventError(
                f"prompt tokens do not balance: {self.produced} {self.billed} {self.absorbed}"
            )
        if self.produced.output != self.billed.output + self.absorbed.output:
            raise UsageEventError(
                f"output tokens do not balance: {self.produced} {self.billed} {self.absorbed}"
            )
        if self.billed.cached > self.produced.cached:
            raise UsageEventError(f"more cached tokens billed than produced: {self.produced} {self.billed}")

    def to_json(self) -> bytes:
        """The whole event as stored in the usage stream."""
        parts = _own_head(self)
        parts |= _decided(self)
        parts |= _tail_object(self)
        parts["ended_ms"] = self.ended_ms
        if self.orphan:
            parts["orphan"] = True
        return _json(parts, self)

    @property
    def charged_tokens(self) -> int:
        """What counts against limits of tokens, as `units_mu` does against limits of units."""
        tokens = charged(self.ending, self.produced, self.billed)
        return tokens.prompt + tokens.output

    def crash_event_json(self) -> bytes:
        """The tail without `ended_ms`, which the reaper's script adds; with what that script charges, so that
        it need not know who pays.
        """
        return orjson.dumps(_tail_object(self) | {"charged_tokens": self.charged_tokens})

    @staticmethod
    def from_json(text: str | bytes) -> "UsageEvent":
        """Read an event. Unknown fields are ignored; anything else that is not as written here raises
        `UsageEventError`.
        """
        try:
            fields = orjson.loads(text)
            if fields["v"] != EVENT_VERSION:
                raise UsageEventError(f"an event of version {fields['v']!r}")
            return _read(fields)
        except UsageEventError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise UsageEventError(f"not a usage event: {type(exc).__name__}: {exc}") from exc


def _json(parts: dict[str, Any], head: EventHead) -> bytes:
    """These members, and those that all requests of a key for a model have in common."""
    common = _common_json(
        head.tenant, head.project, head.key_id, head.model, head.pool, head.cell, head.gateway, head.weights
    )
    return orjson.dumps(parts)[:-1] + common


@lru_cache(maxsize=4096)
def _common_json(
    tenant: str, project: str, key_id: str, model: str, pool: str, cell: str, gateway: str, weights: Weights
) -> bytes:
    """What follows a request's own members in its object, up to the end of the object."""
    members = {
        "tenant": tenant,
        "project": project,
        "key_id": key_id,
        "model": model,
        "pool": pool,
        "cell": cell,
        "weights": weights,
        "gateway": gateway,
    }
    return b"," + orjson.dumps(members)[1:]


def _own_head(head: EventHead) -> dict[str, Any]:
    """What is known of the request itself before it is admitted."""
    return {
        "v": EVENT_VERSION,
        "request_id": head.request_id,
        "route": head.route,
        "stream": head.stream,
        "samples": head.samples,
        "started_ms": head.started_ms,
    }


def _decided(head: EventHead) -> dict[str, Any]:
    """What its cell decides."""
    return {
        "instance": head.instance,
        "epoch": head.epoch,
        "class": _PLAIN[head.class_],
        "contract": head.contract,
    }


def _tokens_object(tokens: Tokens) -> dict[str, int]:
    return {"prompt": tokens.prompt, "cached": tokens.cached, "output": tokens.output}


def _tail_object(event: UsageEvent) -> dict[str, Any]:
    tail: dict[str, Any] = {
        "first_token_ms": event.first_token_ms,
        "waited_ms": event.waited_ms,
        "ending": _PLAIN[event.ending],
        "usage_source": _PLAIN[event.usage_source],
        "anomaly": event.anomaly,
        "produced": _tokens_object(event.produced),
        "delivered": {"output": event.delivered_output},
        "billed": _tokens_object(event.billed),
        "absorbed": {
            "prompt": event.absorbed.prompt,
            "output": event.absorbed.output,
            "reasons": {
                _PLAIN[reason]: {"prompt": part.prompt, "output": part.output}
                for reason, part in event.absorbed.reasons.items()
            },
        },
        "units_mu": event.units_mu,
        "http_status": event.http_status,
        "decision": event.decision,
    }
    if event.ignored:
        tail["ignored"] = event.ignored
    return tail


def _str(value: Any) -> str:
    if type(value) is not str:
        raise UsageEventError(f"not a string: {value!r}")
    return value


def _int(value: Any) -> int:
    if type(value) is not int:
        raise UsageEventError(f"not an integer: {value!r}")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise UsageEventError(f"not true or false: {value!r}")
    return value


def _tokens(fields: Mapping[str, Any]) -> Tokens:
    return Tokens(fields["prompt"], fields["cached"], fields["output"])


def _absorbed(fields: Mapping[str, Any]) -> Absorbed:
    reasons = {
        absorb_reason(reason): AbsorbedTokens(part["prompt"], part["output"])
        for reason, part in fields["reasons"].items()
    }
    return Absorbed(fields["prompt"], fields["output"], reasons)


def _weights(fields: Mapping[str, Any]) -> Weights:
    return Weights(fields["version"], fields["w_in_mu"], fields["w_cached_mu"], fields["w_out_mu"])


def _decision(value: Any) -> Mapping[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise UsageEventError(f"not a decision: {value!r}")
    return value


def _read(fields: Mapping[str, Any]) -> UsageEvent:
    return UsageEvent(
        request_id=_str(fields["request_id"]),
        tenant=_str(fields["tenant"]),
        project=_str(fields["project"]),
        key_id=_str(fields["key_id"]),
        model=_str(fields["model"]),
        pool=_str(fields["pool"]),
        cell=_str(fields["cell"]),
        instance=_str(fields["instance"]),
        epoch=_str(fields["epoch"]),
        route=_str(fields["route"]),
        stream=_bool(fields["stream"]),
        class_=CapacityClass(fields["class"]),
        contract=None if fields["contract"] is None else _str(fields["contract"]),
        weights=_weights(fields["weights"]),
        samples=_int(fields["samples"]),
        started_ms=_int(fields["started_ms"]),
        gateway=_str(fields["gateway"]),
        first_token_ms=None if fields["first_token_ms"] is None else _int(fields["first_token_ms"]),
        ended_ms=_int(fields["ended_ms"]),
        waited_ms=_int(fields["waited_ms"]),
        ending=Ending(fields["ending"]),
        usage_source=UsageSource(fields["usage_source"]),
        anomaly=None if fields["anomaly"] is None else _str(fields["anomaly"]),
        produced=_tokens(fields["produced"]),
        delivered_output=_int(fields["delivered"]["output"]),
        billed=_tokens(fields["billed"]),
        absorbed=_absorbed(fields["absorbed"]),
        units_mu=_int(fields["units_mu"]),
        http_status=_int(fields["http_status"]),
        decision=_decision(fields.get("decision")),
        orphan=_bool(fields.get("orphan", False)),
        ignored=tuple(_str(name) for name in fields.get("ignored") or ()),
    )
