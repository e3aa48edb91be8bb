"""An event for tokens that an engine produced and that no request's event accounts for: they are absorbed and
on nobody's bill.

It owns how such an event is written, with its ledger transaction and the running totals. Its callers
(`reconcile`, `request_check`, `calibrations`) find the tokens and decide why they are absorbed and not a
residual.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from sqlalchemy import Connection, RowMapping
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue.price_book import join_recording
from billing.ledger.entries import Pricing
from billing.ledger.event_days import days_of, recorded
from billing.ledger.running_totals import add_total
from billing.schema.clock import database_now_ms
from billing.schema.ledger import TOKEN_COLUMNS, TOTAL_COLUMNS, ledger_transaction, usage_event
from billing.wire.ending import AbsorbReason, Ending, OtherReason
from billing.wire.tokens import CounterPair
from billing.wire.usage_event import EVENT_VERSION, CapacityClass, UsageSource

KIND: Final = "reconciliation"
# Tokens beyond a request's event are absorbed for its ending if it is one of these, else because the final
# count was not read.
_ENDINGS_NAMED: Final = frozenset({Ending.GATEWAY_DIED, Ending.ENGINE_DIED})


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsorbedEvent:
    """`request_id` makes it unique: if it is written twice, it counts once. `evidence`: the requests that
    explain the tokens.
    """

    request_id: str
    model: str
    pool: str
    cell: str
    instance: str
    epoch: str
    tokens: CounterPair
    reason: AbsorbReason
    ending: Ending
    weights: dict[str, Any]
    started_ms: int
    cached: int = 0
    route: str = KIND
    stream: bool = False
    class_: str = CapacityClass.ON_DEMAND.value
    gateway: str = ""
    evidence: tuple[str, ...] = field(default=())

    @classmethod
    def beyond(
        cls,
        row: RowMapping,
        *,
        request_id: str,
        engine: tuple[str, str],
        tokens: CounterPair,
        evidence: tuple[str, ...],
        ending: Ending,
    ) -> "AbsorbedEvent":
        """What an engine (instance, epoch) produced beyond the event in `row`, or beyond several like it."""
        return cls(
            request_id=request_id,
            model=row["model"],
            pool=row["pool"],
            cell=row["cell"],
            instance=engine[0],
            epoch=engine[1],
            tokens=tokens,
            reason=ending if ending in _ENDINGS_NAMED else OtherReason.UNREAD,
            ending=ending,
            weights=row["weights"],
            started_ms=row["started_ms"],
            class_=row["class"],
            gateway=row["gateway"],
            evidence=evidence,
        )

    def digest(self) -> str:
        """What it says, as one word."""
        facts = [
            self.request_id,
            self.instance,
            self.epoch,
            self.tokens.prompt,
            self.tokens.generation,
            self.evidence,
        ]
        return hashlib.sha256(orjson.dumps(facts)).hexdigest()


def absorb(connection: Connection, absorbed: AbsorbedEvent) -> bool:
    """Write the event, once. Returns whether this was the first time."""
    join_recording(connection)
    if recorded(connection, [absorbed.request_id]):
        return False
    tokens, now_ms = absorbed.tokens, database_now_ms(connection)
    spent = {"absorbed_prompt": tokens.prompt, "absorbed_output": tokens.generation}
    row: dict[str, Any] = dict.fromkeys(TOKEN_COLUMNS, 0) | spent | {
        "request_id": absorbed.request_id, "kind": KIND, "version": EVENT_VERSION, "model": absorbed.model,
        "pool": absorbed.pool, "cell": absorbed.cell, "instance": absorbed.instance, "epoch": absorbed.epoch,
        "route": absorbed.route, "stream": absorbed.stream, "class": absorbed.class_,
        "weights": absorbed.weights, "samples": 0, "started_ms": absorbed.started_ms, "ended_ms": now_ms,
        "day": days_of(connection, [now_ms])[now_ms],
        "waited_ms": 0, "ending": absorbed.ending.value, "usage_source": UsageSource.ENGINE.value,
        "produced_prompt": tokens.prompt, "produced_cached": absorbed.cached,
        "produced_output": tokens.generation,
        "absorbed_reasons": {absorbed.reason.value: {"prompt": tokens.prompt, "output": tokens.generation}},
        "units_mu": 0, "http_status": 0, "gateway": absorbed.gateway, "digest": absorbed.digest(),
        "evidence": {"requests": list(absorbed.evidence)} if absorbed.evidence else None,
    }  # fmt: skip
    fresh = insert(usage_event).values(row).on_conflict_do_nothing().returning(usage_event.c.request_id)
    if connection.execute(fresh).one_or_none() is None:
        return False
    nothing_billed = {
        "request_id": absorbed.request_id, "day": row["day"], "pricing": Pricing.NOTHING_BILLED.value,
        "counted": True,
    }  # fmt: skip
    connection.execute(insert(ledger_transaction).values(nothing_billed))
    add_total(connection, absorbed.instance, absorbed.epoch, dict.fromkeys(TOTAL_COLUMNS, 0) | spent)
    return True
