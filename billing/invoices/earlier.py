"""Periods that are on invoices already, and of which usage came late: what of them is billed, and what their
commitments have cost that no usage has drawn on. Read from the documents.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection

from billing.catalogue.money import ZERO, Money
from billing.invoices import store
from billing.invoices.lines import Earlier
from billing.invoices.store import Stored
from billing.invoices.terms import read_tiers, stored_tiers


def earlier_periods(connection: Connection, tenant_id: str, names: Collection[str]) -> list[Earlier]:
    """Those of these periods that have an invoice, the oldest first, as their documents leave them now."""
    if not names:
        return []
    issued = store.since(connection, tenant_id, min(names))
    return [_earlier(connection, each, issued) for each in issued if each.period in names]


def _earlier(connection: Connection, own: Stored, issued: Sequence[Stored]) -> Earlier:
    """`issued`: it, and the invoices after it."""
    of_it = [
        (each.ledger_upto, line)
        for each in issued
        for line in orjson.loads(each.document)["lines"]
        if line.get("period") == own.period
    ]
    drawn = [(upto, Money.parse(line["amount"])) for upto, line in of_it if line["type"] == "covered"]
    return Earlier(
        period=own.period,
        billed=sum(Money.parse(line["exact"]).picousd for _, line in of_it if line["type"] == "usage"),
        tiers=read_tiers(own.facts["terms"]["tiers"]),
        unused=_unused(own, drawn, store.notes(connection, own.number)),
    )


def _unused(own: Stored, drawn: Sequence[tuple[int, Money]], notes: Sequence[tuple[int, Money]]) -> Money:
    """What nothing has used of the commitment that an invoice charges. What is drawn on it and its credit
    notes are below 0, each after a transaction of the ledger. A note gives back the unused part last: as much
    as it leaves of the invoice is still paid for.
    """
    lines = orjson.loads(own.document)["lines"]
    unused = sum((Money.parse(line["amount"]) for line in lines if line["type"] == "commitment"), ZERO)
    left = own.net
    # An invoice that ends with the transaction of a note has seen it.
    steps = [*((at, False, amount) for at, amount in notes), *((at, True, amount) for at, amount in drawn)]
    for _, is_drawn, amount in sorted(steps, key=lambda step: step[:2]):
        if is_drawn:
            unused += amount
        else:
            left += amount
            unused = min(unused, left)
    return max(ZERO, unused)


def stored_earlier(each: Earlier) -> dict[str, Any]:
    """As JSON."""
    return {
        "period": each.period,
        "billed": each.billed,
        "tiers": stored_tiers(each.tiers),
        "unused": str(each.unused),
    }


def read_earlier(stored: Mapping[str, Any]) -> Earlier:
    """What `stored_earlier` wrote."""
    return Earlier(
        period=stored["period"],
        billed=stored["billed"],
        tiers=read_tiers(stored["tiers"]),
        unused=Money.parse(stored["unused"]),
    )
