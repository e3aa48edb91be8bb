"""A line of a batch is billed once, however often it was sent: the first of its requests that was answered
whole pays, and what all others produced is absorbed.

It owns that rule and the table `line_bill`; it knows no batch. A line is sent again if its answer was lost
after it was produced. The repetition is ours, so its tenant does not pay for it.
"""

from collections.abc import Mapping
from typing import TypeVar

from msgspec.structs import replace
from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from billing.schema.batches import line_bill
from billing.wire.ending import AbsorbReason, Ending, OtherReason
from billing.wire.tokens import Absorbed, AbsorbedTokens, Tokens
from billing.wire.usage_event import UsageEvent

T = TypeVar("T")
_NOTHING = Tokens(0, 0, 0)


def bill_once(connection: Connection, events: Mapping[str, UsageEvent]) -> dict[str, UsageEvent]:
    """Those of these events (by request id) that must not be billed as they say, as they are billed: lines
    that another request pays for, and requests of lines that brought no whole answer.
    """
    billed = {
        request_id: event
        for request_id, event in events.items()
        if event.line is not None and event.billed != _NOTHING
    }
    if not billed:
        return {}
    whole = [event for event in billed.values() if event.ending is Ending.COMPLETE]
    payers = _claim(connection, whole)
    changed = {}
    for request_id, event in billed.items():
        if event.ending is not Ending.COMPLETE:
            changed[request_id] = absorbed(event, event.ending)
        elif payers[str(event.line)] != request_id:
            changed[request_id] = absorbed(event, OtherReason.REPEATED)
    return changed


def absorbed(event: UsageEvent, reason: AbsorbReason) -> UsageEvent:
    """The event with nothing billed: what was is absorbed for this reason."""
    before = event.absorbed
    more = AbsorbedTokens(event.billed.prompt, event.billed.output)
    had = before.reasons.get(reason, AbsorbedTokens(0, 0))
    reasons = dict(before.reasons) | {
        reason: AbsorbedTokens(had.prompt + more.prompt, had.output + more.output)
    }
    absorbs = Absorbed(before.prompt + more.prompt, before.output + more.output, reasons)
    return replace(event, billed=_NOTHING, absorbed=absorbs)


def _claim(connection: Connection, events: list[UsageEvent]) -> dict[str, str]:
    """Who pays for each of these lines: the request that came first, in this transaction or one before it."""
    if not events:
        return {}
    # Ids of later attempts are greater. The same order everywhere, so that two consumers cannot deadlock.
    rows = [{"line": event.line, "request_id": event.request_id} for event in events]
    rows.sort(key=lambda row: (str(row["line"]), str(row["request_id"])))
    connection.execute(insert(line_bill).on_conflict_do_nothing(), rows)
    lines = [row["line"] for row in rows]
    found = connection.execute(
        select(line_bill.c.line, line_bill.c.request_id).where(line_bill.c.line.in_(lines))
    )
    return {row.line: row.request_id for row in found}
