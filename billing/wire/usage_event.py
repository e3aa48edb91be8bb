"""The usage event: the immutable fact of one request. It owns the fields, their balance and their JSON; it
knows neither Redis nor SQL.

An event has a head, known when the request is reserved, and a tail, known when it has ended. A reservation
stores the head and a *crash event*: the tail that the reaper records if the gateway dies. The reaper's script
joins the two texts, so `EventHead.to_json` and `UsageEvent.crash_event_json` are JSON objects that can be
joined at their braces. Tokens are integers, times are ms since the epoch.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec
import orjson

from billing.wire.attribution import charged
from billing.wire.ending import Ending, absorb_reason
from billing.wire.tokens import Absorbed, Delivered, Tokens, UsageEventError, Weights, check_counts
from billing.wire.value import Value

EVENT_VERSION: Final = 1
# Fields that are counts: a request that was preempted and resumed has the sums of its parts.
ADDED_UP: Final = frozenset({"produced", "delivered", "billed", "absorbed", "units_mu", "waited_ms"})
# Fields that tenants do not see, in receipts or in their chain. Moving one changes the hashes of what is
# recorded.
INSIDE: Final = ("pool", "cell", "instance", "epoch", "gateway", "orphan", "provider")


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


# JSON has the members in the order of the fields, so a part of an object begins with the name of its first
# member. In no value is that name, its quotes and the colon: there a quote is escaped.
_VERSION: Final = b'{"v":%d,' % EVENT_VERSION
_ADMISSION_BEGINS: Final = b'"request_id":'
_TAIL_BEGINS: Final = b'"first_token_ms":'
_encode: Final = msgspec.json.Encoder().encode


class EventHead(
    Value,
    frozen=True,
    kw_only=True,
    tag_field="v",
    tag=EVENT_VERSION,
    rename={"class_": "class"},
    omit_defaults=True,
):
    """What is known of a request when it is reserved. A failover to another instance makes a new head.

    A field with a default is written only where it has another value. One that is added must have a default:
    events of the last version lack it, and must have the same digest in this one.
    """

    # What its cell decides when it is admitted.
    class_: CapacityClass
    contract: str | None
    instance: str
    epoch: str
    # What is known before that.
    request_id: str
    tenant: str
    project: str
    key_id: str
    model: str
    pool: str
    cell: str
    route: str
    stream: bool
    weights: Weights
    samples: int
    started_ms: int
    gateway: str
    # The line of a batch that this request serves (`billing.wire.batch_line`).
    line: str | None = None

    def to_json(self) -> bytes:
        """A JSON object: the head, or the whole event as stored in the usage stream."""
        return _encode(self)

    def admission_json(self) -> bytes:
        """The head without class, contract, instance and epoch: the script that decides them adds them."""
        text = _encode(self)
        return _VERSION + text[text.index(_ADMISSION_BEGINS) :]


class UsageEvent(EventHead, frozen=True, kw_only=True):
    """One request from reserve to its ending: its head's fields and these. produced = billed + absorbed, for
    the prompt and for the output.
    """

    # What is not in a crash event: the scripts that end a request add it.
    ended_ms: int
    # The reservation was gone when it settled: Redis had lost it, the tokens were not lost.
    orphan: bool = False
    # What is in it.
    first_token_ms: int | None
    waited_ms: int
    ending: Ending
    usage_source: UsageSource
    anomaly: str | None
    produced: Tokens
    delivered: Delivered
    billed: Tokens
    absorbed: Absorbed
    units_mu: int
    http_status: int
    # Why it was admitted as it was (docs/interfaces.md §7). No plain default, as null is written too.
    decision: Mapping[str, Any] | None = msgspec.field(default_factory=lambda: None)
    # Names of ignored fields of the request (docs/fields.md); their writer bounds them.
    ignored: tuple[str, ...] = ()
    # Of a request that went to a provider: {"kind", "model": its name there, "usage": as the provider said
    # it, null if it did not}.
    provider: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_counts(self.delivered.output, self.units_mu, self.waited_ms)
        if self.produced.prompt != self.billed.prompt + self.absorbed.prompt:
            raise UsageEventError(
                f"prompt tokens do not balance: {self.produced} {self.billed} {self.absorbed}"
            )
        if self.produced.output != self.billed.output + self.absorbed.output:
            raise UsageEventError(
                f"output tokens do not balance: {self.produced} {self.billed} {self.absorbed}"
            )
        if self.billed.cached > self.produced.cached or self.billed.written > self.produced.written:
            raise UsageEventError(f"more cached tokens billed than produced: {self.produced} {self.billed}")

    @property
    def charged_tokens(self) -> int:
        """What counts against limits of tokens, as `units_mu` does against limits of units."""
        untold = self.provider is not None and self.usage_source is not UsageSource.ENGINE
        tokens = charged(self.ending, self.produced, self.billed, untold=untold)
        return tokens.prompt + tokens.output

    def crash_event_json(self) -> bytes:
        """The tail without `ended_ms`, which the reaper's script adds; with what that script charges, so that
        it need not know who pays.
        """
        text = _encode(self)
        return b'{"charged_tokens":%d,' % self.charged_tokens + text[text.index(_TAIL_BEGINS) :]

    @staticmethod
    def from_json(text: str | bytes) -> "UsageEvent":
        """Read an event. Unknown fields are ignored; anything else that is not as written here raises
        `UsageEventError`.
        """
        try:
            fields = orjson.loads(text)
            if fields["v"] != EVENT_VERSION:
                raise UsageEventError(f"an event of version {fields['v']!r}")
            reasons = fields["absorbed"]["reasons"].items()
            fields["absorbed"]["reasons"] = {absorb_reason(name).value: tokens for name, tokens in reasons}
            return msgspec.convert(fields, UsageEvent)
        except UsageEventError:
            raise
        except (msgspec.ValidationError, KeyError, TypeError, ValueError, AttributeError) as exc:
            raise UsageEventError(f"not a usage event: {type(exc).__name__}: {exc}") from exc


# The columns of each field: that of its own name or, of a group of tokens, one for each kind.
COLUMNS: Final = {
    field.encode_name: tuple(f"{field.encode_name}_{kind}" for kind in field.type.__struct_fields__)
    if field.type in {Tokens, Delivered, Absorbed}
    else (field.encode_name,)
    for field in msgspec.structs.fields(UsageEvent)
}
