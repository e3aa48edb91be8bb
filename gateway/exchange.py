"""One request in flight: the state that its stages, the checkpoint and a stop share. It decides nothing.

An exchange ends once. To end it early, call `stop` with the reason. The forwarding task then reads the
engine's answer to its end, because only the end contains the final usage. Times named `_at` are monotonic
seconds, those named `_ms` are milliseconds since the epoch.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from billing.cell.replies import Grant
from billing.cell.scripts import CellKeys, Tier
from billing.wire.ending import Ending
from billing.wire.instance_entry import InstanceEntry
from billing.wire.part_ids import part_id, part_number
from billing.wire.usage_event import CapacityClass, EventHead
from gateway.authenticate import Caller
from gateway.catalogue.entries import Model
from gateway.edge.client import ClientConnection
from gateway.protocol import used_tier
from gateway.request import ParsedRequest
from gateway.routing.choice import Choice
from gateway.stream.continuation import DeliveredEvents, Splice, can_resume, remaining_request
from gateway.stream.meter import Produced
from gateway.stream.meter_choices import ChoicesMeter
from gateway.upstream.adapters import adapter_of
from gateway.upstream.attempt import Attempt

# A stream's events are kept as bytes; when there are more than so many, as text.
EVENTS_KEPT: Final = 1000


class Claim(Protocol):
    """That a request is the one under its Idempotency-Key."""

    exchange: "Exchange | None"

    @property
    def keeps(self) -> bool:
        """Whether its answer is kept, so that the request goes on when its caller leaves."""


class Request(Struct, frozen=True, eq=False, kw_only=True):
    """What was asked for, and by whom. `keys`: its keys in Redis. `claim`: where it came with an
    Idempotency-Key.
    """

    request_id: str
    parsed: ParsedRequest
    caller: Caller
    model: Model
    keys: CellKeys
    started_at: float
    body_bytes: int = 0
    client_connection: ClientConnection | None = None
    claim: Claim | None = None


class Delivery(Struct, eq=False, kw_only=True):
    """What has been delivered to the caller, and when. `sent_at`: when the request was first sent to an
    engine. The time before that is the gateway's own.
    """

    sent_at: float = 0.0
    first_token_ms: int | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    output: int = 0

    def of_next_part(self) -> "Delivery":
        """The delivery of the next part: its times continue, its tokens start at 0."""
        return Delivery(
            sent_at=self.sent_at, first_token_ms=self.first_token_ms, first_token_at=self.first_token_at
        )


@dataclass(slots=True, eq=False, kw_only=True)
class Resumable:
    """The state of a stream that can be resumed elsewhere, after it was preempted or its engine failed.
    `delivered`: what the caller has of this part. `preempted`: it is to stop, to be resumed elsewhere.
    `following`: the part that resumes it; that part produces `discarded_output` tokens again.
    """

    delivered: DeliveredEvents | None = None
    preempted: bool = False
    following: "Exchange | None" = None
    discarded_output: int = 0

    @classmethod
    def of(cls, parsed: ParsedRequest) -> "Resumable | None":
        """For a request that can be resumed, else None."""
        return cls() if can_resume(parsed) else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Continued:
    """The state of a later part: the part before it, and the splice that makes its chunks continue the
    first part's stream.
    """

    previous: "Exchange"
    splice: Splice


@dataclass(slots=True, eq=False, kw_only=True)
class Recorded:
    """What the last checkpoint recorded. `instance_changed`: the request has moved to another instance
    since.
    """

    at: float = 0.0
    output: int = 0
    instance_changed: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request has ended for its caller, while the gateway still asks the engine for the final count."""

    ending: Ending
    http_status: int


@dataclass(slots=True, eq=False, kw_only=True)
class Exchange:
    """A request from reserve to settle: the request, the current attempt, what was delivered, and how it can
    be resumed.

    `decision`: why it was admitted in this class, for its receipt. `choice`: of its instance, if its model
    has several. `tried`: instances that failed, and whether they died with it. `on_stop` is called when it is
    to end early.
    """

    request: Request
    head: EventHead
    attempt: Attempt
    resumable: Resumable | None = None
    continued: Continued | None = None
    delivery: Delivery = field(default_factory=Delivery)
    tried: dict[str, bool] = field(default_factory=dict)
    waited_ms: int = 0
    decision: dict[str, Any] | None = None
    choice: Choice | None = None
    on_stop: Callable[[], None] | None = None
    stop_ending: Ending | None = None
    ended: Ended | None = None
    final_count: Produced | None = None
    settled: bool = False
    request_id: str = field(init=False)
    parsed: ParsedRequest = field(init=False)
    _recorded: Recorded | None = None

    def __post_init__(self) -> None:
        self.request_id, self.parsed = self.request.request_id, self.request.parsed

    @property
    def recorded(self) -> Recorded:
        """What checkpoints have recorded of it. Most requests end before the first one."""
        if self._recorded is None:
            self._recorded = Recorded()
        return self._recorded

    @property
    def previous(self) -> "Exchange | None":
        """The part before this one."""
        return None if self.continued is None else self.continued.previous

    @property
    def following(self) -> "Exchange | None":
        """The part that resumes this one."""
        return None if self.resumable is None else self.resumable.following

    @property
    def first_part(self) -> "Exchange":
        """The part with which the request began."""
        part = self
        while (previous := part.previous) is not None:
            part = previous
        return part

    @property
    def current_part(self) -> "Exchange":
        """The part that runs now, of a request that was preempted and resumed."""
        part = self
        while (following := part.following) is not None:
            part = following
        return part

    @property
    def preempted(self) -> bool:
        """Whether it is to stop, to be resumed elsewhere."""
        return self.resumable is not None and self.resumable.preempted

    @property
    def discarded_output(self) -> int:
        """Tokens that it has produced and the next part produces again."""
        return 0 if self.resumable is None else self.resumable.discarded_output

    @property
    def engine_model(self) -> str:
        """The name of its model on its current instance."""
        return self.attempt.instance.engine_model or self.request.model.engine_model

    @property
    def is_over(self) -> bool:
        """Whether only its settle is left to do."""
        return self.settled or self.ended is not None

    @property
    def is_running(self) -> bool:
        """Whether its engine is to go on with it."""
        return not self.is_over and self.stop_ending is None and self.following is None

    @property
    def can_move(self) -> bool:
        """Whether another instance may take over: nothing of the answer has been delivered, or the text so
        far can be continued.
        """
        return self.delivery.first_token_at is None or self.resumable is not None

    def produced(self) -> Produced:
        """The tokens that the engine has produced for it, as far as is known."""
        return self.attempt.meter.produced() if self.final_count is None else self.final_count

    def stop(self, ending: Ending) -> None:
        """Ask for an early end. The first reason counts; after the end this does nothing. A resumed request
        stops in the part that runs now.
        """
        part = self.current_part
        if part.stop_ending is None and not part.is_over:
            part.stop_ending = ending
            if part.on_stop is not None:
                part.on_stop()

    def preempt(self) -> None:
        """Stop it inside the engine, to be resumed elsewhere."""
        assert self.resumable is not None
        if self.stop_ending is None and not self.is_over and not self.resumable.preempted:
            self.resumable.preempted = True
            if self.on_stop is not None:
                self.on_stop()

    def begin_stream(self) -> Callable[[bytes], bytes] | None:
        """The stream of this instance begins. Returns what its pieces must go through before they are sent:
        it remembers them as delivered, and makes those of a later part continue the first part's stream.
        """
        if self.resumable is not None and not adapter_of(self.attempt.instance).CONTINUES_TEXT:
            self.resumable = None
        if self.resumable is None:
            return None if self.continued is None else self.continued.splice.rewrite
        meter = self.attempt.meter
        assert isinstance(meter, ChoicesMeter)
        delivered = self.resumable.delivered = DeliveredEvents()
        meter.counts = delivered.counts
        if self.continued is None:
            return delivered.add
        splice = self.continued.splice
        return lambda passed: splice.rewrite(delivered.add(passed))

    def fold_delivered(self) -> None:
        """Shorten what is remembered of a long answer."""
        delivered = None if self.resumable is None else self.resumable.delivered
        if delivered is not None and len(delivered.counts) > EVENTS_KEPT:
            delivered.fold(self.parsed)

    def closing_text(self) -> bytes:
        """The last event of a preempted stream, with the text that came with the abort; empty if there is
        none. Raises ValueError if it carries more than text.
        """
        meter = self.attempt.meter
        assert self.resumable is not None
        assert self.resumable.delivered is not None
        assert isinstance(meter, ChoicesMeter)
        if meter.last_chunk is None:
            return b""
        event = self.resumable.delivered.close(self.parsed, meter.last_chunk, meter.output_tokens())
        if event:
            event = meter.written(event.removesuffix(b"\n\n"))
        return event if self.continued is None else self.continued.splice.rewrite(event)

    def prompt_read(self) -> Produced | None:
        """Usage of the first earlier part that has produced something: its prompt tokens are the
        request's.
        """
        found, part = None, self.previous
        while part is not None:
            produced = part.produced()
            found, part = produced if produced.output else found, part.previous
        return found

    def next_part(self) -> "Exchange":
        """The part that resumes this one; it has no instance of its own yet. Raises ValueError if the request
        cannot be resumed, or its usage has an anomaly.
        """
        meter, resumable = self.attempt.meter, self.resumable
        assert isinstance(meter, ChoicesMeter)
        if meter.anomaly is not None:
            raise ValueError(meter.anomaly)
        if meter.has_ended:
            raise ValueError("the text is whole")
        first = self.first_part
        assert resumable is not None
        assert resumable.delivered is not None
        before = None if self.continued is None else self.continued.splice
        carried = resumable.delivered.carried(self.parsed)
        if before is not None:
            carried = carried._replace(rest=carried.rest + before.repeated)
        parsed = remaining_request(self.parsed, carried, self.request.model.default_max_tokens)
        request_id = part_id(first.request_id, part_number(self.request_id, first.request_id) + 1)
        head = self.head
        keys = CellKeys.of(
            head.cell, request_id=request_id, tenant=head.tenant, key_id=head.key_id, model=head.model
        )
        base = self._prompt_of_next()
        splice = Splice(
            request_id,
            first.request_id,
            opened=resumable.delivered.started or (before is not None and before.opened),
            prompt=None if base is None else base.prompt,
            cached=0 if base is None else base.cached,
            output=carried.tokens + (0 if before is None else before.output),
            repeated=carried.rest,
        )
        following = Exchange(
            request=replace(self.request, request_id=request_id, parsed=parsed, keys=keys),
            head=replace(head, request_id=request_id),
            attempt=Attempt.on(self.attempt.instance, parsed, request_id, tier=meter.tier),
            resumable=Resumable.of(parsed),
            continued=Continued(previous=self, splice=splice),
            delivery=self.delivery.of_next_part(),
            choice=self.choice,
            tried=dict(self.tried),
        )
        resumable.discarded_output = meter.produced().output - carried.tokens
        resumable.following = following
        return following

    def _prompt_of_next(self) -> Produced | None:
        """`prompt_read` of the part after this one."""
        produced = self.produced()
        return self.prompt_read() or (produced if produced.output else None)

    def not_admitted(self) -> None:
        """No slot was found for this part, so the part before it is the last."""
        previous = self.previous
        assert previous is not None
        assert previous.resumable is not None
        if self.stop_ending is not None and previous.stop_ending is None:
            previous.stop_ending = self.stop_ending
        previous.resumable.following = None

    def on_client_disconnect(self) -> None:
        """The caller's connection is closed."""
        if self.request.claim is None or not self.request.claim.keeps:
            self.stop(Ending.CLIENT_DISCONNECT)

    def at_ms(self, monotonic_s: float) -> int:
        """A moment of this request in ms since the epoch, counted from its start, so that its times never
        contradict each other.
        """
        return self.head.started_ms + int((monotonic_s - self.request.started_at) * 1000)

    def mark_delivered(self) -> None:
        """Note that a piece of the answer has been handed to the caller's connection."""
        now, delivery = time.monotonic(), self.delivery
        if delivery.first_token_at is None:
            delivery.first_token_at = now
            delivery.first_token_ms = self.at_ms(now)
            if self.choice is not None:
                self.choice.first_token()
        delivery.last_token_at = now
        delivery.output = self.attempt.meter.output_tokens()

    def admitted(self, grant: Grant, candidates: Collection[InstanceEntry], asked: Tier) -> None:
        """Note what the cell has decided: class, contract and instance."""
        head, attempt = self.head, self.attempt
        # Even if the instance is the same: while the request waited, its engine may have restarted with
        # another address and key.
        instance = next(entry for entry in candidates if entry.instance == grant.instance)
        if instance.engine == attempt.instance.engine:
            attempt.instance = instance
        else:
            attempt = self.attempt = Attempt.on(instance, self.parsed, self.request_id)
        if grant.class_ != head.class_ or grant.instance != head.instance or grant.epoch != head.epoch:
            self.head = replace(
                head,
                class_=CapacityClass(grant.class_),
                contract=grant.contract,
                instance=grant.instance,
                epoch=grant.epoch,
            )
        if self.parsed.route.metered:
            attempt.meter.tier = used_tier(self.head.class_)
        self.decision = {
            "asked": asked.value,
            "why": grant.why,
            "level_before_mu": grant.level_before_mu,
            "level_after_mu": grant.level_after_mu,
            "rate_mu_s": grant.rate_mu_s,
        }

    def sent(self) -> None:
        """It goes to the instance of its attempt now."""
        if self.choice is not None:
            tells = self.parsed.stream and self.delivery.first_token_at is None
            self.choice.sent(self.attempt.instance, tells_first_token=tells)
            self.decision = (self.decision or {}) | self.choice.decided

    def move_to(self, instance: InstanceEntry) -> None:
        """Begin a new attempt on another instance: same reservation, nothing produced yet."""
        tier = self.attempt.meter.tier
        self.attempt = Attempt.on(instance, self.parsed, self.request_id, tier=tier)
        self.head = replace(self.head, instance=instance.instance, epoch=instance.epoch)
        self.recorded.instance_changed = True
