"""One request in flight: what its stages, the checkpoint and a stop share. It owns the state, and decides nothing.

An exchange ends once. Whoever wants it to end early calls `stop` with the reason; the forwarding task then reads the engine's answer to its
end, because only the end says what was produced.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from billing.cell.replies import Grant
from billing.cell.scripts import Asked, CellKeys
from billing.wire.instance_entry import InstanceEntry
from billing.wire.usage_event import CapacityClass, Ending, EventHead
from gateway.authenticate import Caller
from gateway.catalogue.entries import Model
from gateway.edge.client import ClientConnection
from gateway.protocol import used_tier
from gateway.request import ParsedRequest
from gateway.stream.continuation import Given, Splice, going_on
from gateway.stream.meter import Meter, Produced
from gateway.stream.meter_choices import ChoicesMeter
from gateway.upstream.adapters import adapter_of
from gateway.upstream.connection import UpstreamConnection


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request has ended for its caller, while the engine's last word is still to come."""

    ending: Ending
    http_status: int


@dataclass(slots=True, eq=False)
class Exchange:
    """A request from reserve to settle. Times ending in `_at` are monotonic seconds, `_ms` are milliseconds since the epoch."""

    request_id: str
    parsed: ParsedRequest
    caller: Caller
    model: Model
    instance: InstanceEntry
    meter: Meter
    head: EventHead
    keys: CellKeys
    started_at: float
    body_bytes: int = 0
    connection: UpstreamConnection | None = None
    client_connection: ClientConnection | None = None
    # When it first went to an engine: what comes before is the gateway's own time.
    sent_at: float = 0.0
    try_started_at: float = 0.0
    tried: list[str] = field(default_factory=list)
    try_timed_out: bool = False
    first_token_ms: int | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    delivered_output: int = 0
    checkpointed_at: float = 0.0
    checkpointed_output: int = 0
    moved: bool = False
    waited_ms: int = 0
    # Why it was admitted as it was, for its receipt.
    decision: dict[str, Any] | None = None
    # Of a flex stream that can give way and go on: what its caller has been given. Of a part that another follows: what that one produces again.
    # Of a later part: the one before, and how its chunks are told.
    can_go_on: bool = False
    gives_way: bool = False
    given: Given | None = None
    discarded_output: int = 0
    previous: "Exchange | None" = None
    following: "Exchange | None" = None
    splice: Splice | None = None
    stop_ending: Ending | None = None
    # Whether its present instance may have it: it was sent there; and whether that instance has begun to answer.
    in_engine: bool = False
    answered: bool = False
    ended: Ended | None = None
    last_word: Produced | None = None
    settled: bool = False
    on_stop: Callable[["Exchange"], None] | None = None
    # The task that forwards; the only one that may settle.
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def engine_model(self) -> str:
        """Its model, as its present instance calls it."""
        return self.instance.engine_model or self.model.engine_model

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it but being settled."""
        return self.settled or self.ended is not None

    def produced(self) -> Produced:
        """What the engine has produced for it, as far as is known."""
        return self.meter.produced() if self.last_word is None else self.last_word

    def stop(self, ending: Ending) -> None:
        """Ask for an early end. The first reason stays; after the end it is a no-op. What has gone on as another ends there."""
        if self.following is not None:
            self.following.stop(ending)
            return
        if self.stop_ending is None and not self.is_over:
            self.stop_ending = ending
            if self.on_stop is not None:
                self.on_stop(self)

    def give_way(self) -> None:
        """Stop inside the engine, to go on elsewhere."""
        if self.stop_ending is None and not self.is_over and not self.gives_way:
            self.gives_way = True
            if self.on_stop is not None:
                self.on_stop(self)

    def begin_stream(self) -> bool:
        """A stream begins to come from this instance. Whether what its caller is given has to go through `told`."""
        if self.can_go_on:
            assert isinstance(self.meter, ChoicesMeter)
            self.given = Given()
            self.meter.counts = self.given.counts
        return self.can_go_on or self.splice is not None

    def told(self, passed: bytes) -> bytes:
        """A piece of the answer as the caller is to have it."""
        if self.given is not None:
            self.given.add(passed)
        return passed if self.splice is None else self.splice.told(passed)

    def last_words(self) -> bytes:
        """What came with its stop, as the caller is to have it; raises ValueError where that is more than text."""
        meter = self.meter
        assert self.given is not None
        assert isinstance(meter, ChoicesMeter)
        if meter.last_chunk is None:
            return b""
        said = self.given.close(self.parsed, meter.last_chunk, meter.output_tokens())
        if said:
            said = meter.written(said.removesuffix(b"\n\n")) + b"\n\n"
        return said if self.splice is None else self.splice.told(said)

    def prompt_read(self) -> Produced | None:
        """The figures of the first part before this one that has produced something: its prompt is the request's."""
        found, part = None, self.previous
        while part is not None:
            produced = part.produced()
            found, part = produced if produced.output else found, part.previous
        return found

    def next_part(self) -> "Exchange":
        """What goes on from here; it has no instance of its own yet. Raises ValueError when nothing can, or by figures that are wrong."""
        if self.meter.anomaly is not None:
            raise ValueError(self.meter.anomaly)
        first = self
        while first.previous is not None:
            first = first.previous
        assert self.given is not None
        text, carried = self.given.text_and_tokens(self.parsed)
        parsed = going_on(self.parsed, text, carried)
        number = int(self.request_id.removeprefix(first.request_id)[1:] or 1) + 1
        request_id = f"{first.request_id}-{number}"
        head = self.head
        following = Exchange(
            request_id, parsed, self.caller, self.model, self.instance, adapter_of(self.instance).meter(parsed, self.meter.tier),
            replace(head, request_id=request_id),
            CellKeys.of(head.cell, request_id=request_id, tenant=head.tenant, key_id=head.key_id, model=head.model),
            self.started_at, self.body_bytes, client_connection=self.client_connection, sent_at=self.sent_at,
            first_token_ms=self.first_token_ms, first_token_at=self.first_token_at, previous=self,
        )  # fmt: skip
        base = following.prompt_read()
        following.splice = Splice(
            request_id,
            first.request_id,
            opened=self.given.begun or (self.splice is not None and self.splice.opened),
            prompt=None if base is None else base.prompt,
            cached=0 if base is None else base.cached,
            output=carried + (0 if self.splice is None else self.splice.output),
        )
        self.discarded_output = self.meter.produced().output - carried
        self.following = following
        return following

    def end_before_it_began(self) -> None:
        """It found no place: the part before it is the last."""
        assert self.previous is not None
        if self.stop_ending is not None and self.previous.stop_ending is None:
            self.previous.stop_ending = self.stop_ending
        self.previous.following = None

    def client_left(self) -> None:
        """The caller's connection has gone."""
        self.stop(Ending.CLIENT_DISCONNECT)

    def at_ms(self, monotonic_s: float) -> int:
        """A moment of this request, by the clock that says when it began: its times never contradict each other."""
        return self.head.started_ms + int((monotonic_s - self.started_at) * 1000)

    def passed_on(self) -> None:
        """A piece of the answer has been handed to the caller's connection."""
        now = time.monotonic()
        if self.first_token_at is None:
            self.first_token_at = now
            self.first_token_ms = self.at_ms(now)
        self.last_token_at = now
        self.delivered_output = self.meter.output_tokens()

    def admitted(self, grant: Grant, candidates: Collection[InstanceEntry], asked: Asked) -> None:
        """The cell has decided: class, contract and instance."""
        head = self.head
        # Also where the id is that of before: while it waited, the engine may have started anew, at another address and with another key.
        instance = next(entry for entry in candidates if entry.instance == grant.instance)
        if instance.engine != self.instance.engine:
            self.meter = adapter_of(instance).meter(self.parsed, None)
        self.instance = instance
        if grant.class_ != head.class_ or grant.instance != head.instance or grant.epoch != head.epoch:
            self.head = replace(
                head,
                class_=CapacityClass(grant.class_),
                contract=grant.contract,
                instance=grant.instance,
                epoch=grant.epoch,
            )
        if self.parsed.route.metered:
            self.meter.tier = used_tier(self.head.class_)
        self.decision = {
            "asked": asked.value,
            "why": grant.why,
            "level_before_mu": grant.level_before_mu,
            "level_after_mu": grant.level_after_mu,
            "rate_mu_s": grant.rate_mu_s,
        }

    def move_to(self, instance: InstanceEntry) -> None:
        """Try again on another instance: same reservation, nothing produced yet."""
        self.instance = instance
        self.head = replace(self.head, instance=instance.instance, epoch=instance.epoch)
        self.meter = adapter_of(instance).meter(self.parsed, self.meter.tier)
        self.moved = True
        self.in_engine = self.answered = False
        self.try_timed_out = False
