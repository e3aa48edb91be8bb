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
    lines = [(each.ledger_upto, line) for each in issued for line in orjson.loads(each.document)["lines"]]
    return [_earlier(connection, each, lines) for each in issued if each.period in names]


def _earlier(connection: Connection, own: Stored, lines: Sequence[tuple[int, Mapping[str, Any]]]) -> Earlier:
    """`lines`: of its invoice and of those after it, each with the last transaction that its invoice
    counts.
    """
    of_it = [(upto, line) for upto, line in lines if line.get("period") == own.period]
    return Earlier(
        period=own.period,
        billed=sum(Money.parse(line["exact"]).picousd for _, line in of_it if line["type"] == "usage"),
        tiers=read_tiers(own.facts["terms"]["tiers"]),
        unused=_unused(
            own,
            [(upto, Money.parse(line["amount"])) for upto, line in of_it if line["type"] == "covered"],
            store.notes(connection, own.number),
        ),
    )


def _unused(own: Stored, drawn: Sequence[tuple[int, Money]], notes: Sequence[tuple[int, Money]]) -> Money:
    """What is left of the commitment that an invoice charges, after what late usage has drawn on it and what
    credit notes have given back: both are amounts below 0, with the transaction that they came after. A note
    gives back the unused part last, so that part is never more than what the note leaves of the invoice.
    """
    charged = (line for line in orjson.loads(own.document)["lines"] if line["type"] == "commitment")
    unused = sum((Money.parse(line["amount"]) for line in charged), ZERO)
    left = own.net
    # In their order. Notes come first where both have the same transaction: that invoice has seen the note.
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
