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
from billing.usage_event import CapacityClass, Ending, EventHead
from gateway.authenticate import Caller
from gateway.catalogue_entries import Model
from gateway.client import ClientConnection
from gateway.meter import Meter
from gateway.meter_for import meter_for
from gateway.protocol import used_tier
from gateway.request import UNMETERED_ROUTES, ParsedRequest, Route
from gateway.upstream import UpstreamConnection
from serving.registry import InstanceEntry


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
    stop_ending: Ending | None = None
    settled: bool = False
    on_stop: Callable[["Exchange"], None] | None = None
    # The task that forwards; the only one that may settle.
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self, ending: Ending) -> None:
        """Ask for an early end. The first reason stays; after the end it is a no-op."""
        if self.stop_ending is None and not self.settled:
            self.stop_ending = ending
            if self.on_stop is not None:
                self.on_stop(self)

    def client_left(self) -> None:
        """The caller's connection has gone."""
        self.stop(Ending.CLIENT_DISCONNECT)

    def passed_on(self) -> None:
        """A piece of the answer has been handed to the caller's connection."""
        now = time.monotonic()
        if self.first_token_at is None:
            self.first_token_at = now
            self.first_token_ms = int(time.time() * 1000)
        self.last_token_at = now
        self.delivered_output = self.meter.output_tokens()

    def admitted(self, grant: Grant, candidates: Collection[InstanceEntry], asked: Asked) -> None:
        """The cell has decided: class, contract and instance."""
        head = self.head
        if grant.instance != head.instance:
            self.instance = next(entry for entry in candidates if entry.instance == grant.instance)
        if grant.class_ != head.class_ or grant.instance != head.instance or grant.epoch != head.epoch:
            self.head = replace(
                head,
                class_=CapacityClass(grant.class_),
                contract=grant.contract,
                instance=grant.instance,
                epoch=grant.epoch,
            )
        if self.parsed.route not in UNMETERED_ROUTES:
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
        self.meter = meter_for(self.parsed, self.meter.tier)
        self.moved = True
        self.try_timed_out = False

    def engine_request_ids(self) -> list[str]:
        """The ids by which the engine knows this request (DESIGN §7)."""
        match self.parsed.route:
            case Route.COMPLETIONS:
                return [f"cmpl-{self.request_id}-{index}" for index in range(self.parsed.prompts)]
            case Route.RESPONSES:
                return [f"{response_id(self.request_id)}_0"]
            case Route.EMBEDDINGS:
                return [f"embd-{self.request_id}-{index}" for index in range(self.parsed.prompts)]
            case _:
                return [f"chatcmpl-{self.request_id}"]


def response_id(request_id: str) -> str:
    """The id of a response object, which is also the engine's id of the request: `resp_…` for `req_…`."""
    return "resp_" + request_id.removeprefix("req_")
