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
    lines = [line for each in issued for line in orjson.loads(each.document)["lines"]]
    return [_earlier(connection, each, lines) for each in issued if each.period in names]


def _earlier(connection: Connection, own: Stored, lines: Sequence[Mapping[str, Any]]) -> Earlier:
    """`lines`: of its invoice, and of those after it."""
    of_it = [line for line in lines if line.get("period") == own.period]
    charged = [line for line in orjson.loads(own.document)["lines"] if line["type"] == "commitment"]
    drawn = [line for line in of_it if line["type"] == "covered"]
    unused = sum((Money.parse(line["amount"]) for line in [*charged, *drawn]), ZERO)
    # A credit note gives back the commitment last: as much as it leaves of the invoice is still paid for.
    return Earlier(
        period=own.period,
        billed=sum(Money.parse(line["exact"]).picousd for line in of_it if line["type"] == "usage"),
        tiers=read_tiers(own.facts["terms"]["tiers"]),
        unused=max(ZERO, min(unused, own.net - store.credited(connection, own.number))),
    )


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
