"""What went to providers of a kind, by day and their name for the model: to be held against their own count.
It adds up recorded usage.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, literal_column, select

from billing.moments import DAY_MS, day_of
from billing.schema.ledger import TOLD, UNTOLD, in_days, usage_event

_KINDS: Final = ("prompt", "cached", "written", "output")


@dataclass(frozen=True, slots=True)
class Period:
    """Requests that ended in [from, until)."""

    from_ms: int
    until_ms: int


def provider_usage(
    connection: Connection, kind: str, period: Period, instances: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Of all instances of this kind, or of some. Tokens are of requests whose usage the provider has told;
    `absorbed` is what was produced and not billed.
    """
    of = usage_event.c
    day = of.ended_ms.op("/")(literal_column(str(DAY_MS)))
    model = of.provider.op("->>")(literal_column("'model'"))
    tokens = {
        f"{what}_{name}": func.coalesce(func.sum(of[f"{what}_{name}"]).filter(TOLD), 0)
        for what in ("billed", "produced")
        for name in _KINDS
    }
    query = (
        select(
            day.label("day"), model.label("model"),
            *(total.label(name) for name, total in tokens.items()),
            func.count().filter(TOLD).label("requests"), func.count().filter(UNTOLD).label("untold"),
        )
        .where(
            of.kind == "request",
            in_days(period.from_ms, period.until_ms),
            of.provider["kind"].as_string() == kind,
            of.ended_ms >= period.from_ms,
            of.ended_ms < period.until_ms,
        )
        .group_by(day, model)
        .order_by(day, model)
    )  # fmt: skip
    if instances:
        query = query.where(of.instance.in_(instances))
    return [
        {
            "day": day_of(row["day"] * DAY_MS),
            "model": row["model"],
            "requests": row["requests"],
            "untold": row["untold"],
            "billed": {name: int(row[f"billed_{name}"]) for name in _KINDS},
            "absorbed": {name: int(row[f"produced_{name}"] - row[f"billed_{name}"]) for name in _KINDS},
        }
        for row in connection.execute(query).mappings()
    ]
