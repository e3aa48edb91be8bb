"""Rates recorded requests by two price lists, so that what a change does is seen before it is made. It
changes nothing.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, RowMapping, text

from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import PriceBook
from billing.ledger.entries import price_scopes
from billing.moments import DAY_MS, HOUR_MS
from billing.schema.clock import database_now_ms
from billing.schema.ledger import NO_DAY
from billing.wire.tokens import Tokens

SAMPLE_MAX: Final = 20_000
DAYS_MOST: Final = 35
_DAY_HOURS: Final = DAY_MS // HOUR_MS
# Where there is anything to find: the sums say in which hours which tenants used these models.
_USED: Final = text("""
    select model, tenant, hour from usage_hour
    where hour >= :first and hour < :last and model = any (:models)
    group by model, tenant, hour having sum(billed_prompt + billed_output) > 0
    order by model, hour desc, tenant
""")
# Each part has an index of its own, and is read only if those before it had too few.
_REQUESTS: Final = text(f"""
    select e.*
    from unnest(cast(:tenants as text[]), cast(:hours as bigint[])) as part (tenant, hour)
    cross join lateral (
      select tenant, pool, class, contract, line, decision, started_ms, billed_prompt, billed_cached,
        billed_output, billed_written
      from usage_event
      where day in (:day, {NO_DAY}) and tenant = part.tenant
        and ended_ms >= part.hour * {HOUR_MS} and ended_ms < (part.hour + 1) * {HOUR_MS}
        and model = :model and kind = 'request' and billed_prompt + billed_output > 0
      limit :most
    ) e
    limit :most
""")  # noqa: S608 (constants)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A recorded request, as far as its price depends on it."""

    model: str
    tenant: str
    pool: str
    class_: str
    contract: str | None
    line: str | None
    decision: Mapping[str, Any] | None
    started_ms: int
    billed: Tokens


@dataclass(slots=True)
class Rated:
    """What requests of a model and class cost by each list. `unpriced`: without a price by the second."""

    requests: int = 0
    unpriced: int = 0
    before: Money = ZERO
    after: Money = ZERO


def sample(connection: Connection, models: Collection[str], most: int) -> list[Sampled]:
    """The newest billed requests of these models, `most` of each, of the last 35 days at most. By hour: which
    of the oldest hour is left to the database.
    """
    today = database_now_ms(connection) // DAY_MS
    left = dict.fromkeys(sorted(models), most)
    found: list[Sampled] = []
    for day in range(today + 1, today - DAYS_MOST - 1, -1):
        hours = {"first": day * _DAY_HOURS, "last": (day + 1) * _DAY_HOURS, "models": list(left)}
        used: defaultdict[str, list[Row[Any]]] = defaultdict(list)
        for row in connection.execute(_USED, hours):
            used[row.model].append(row)
        for model, parts in used.items():
            asked = {
                "day": day, "model": model, "most": left[model], "tenants": [part.tenant for part in parts],
                "hours": [part.hour for part in parts],
            }  # fmt: skip
            rows = connection.execute(_REQUESTS, asked).mappings().all()
            found += [_sampled(model, row) for row in rows]
            left[model] -= len(rows)
        left = {model: count for model, count in left.items() if count}
        if not left:
            break
    return found


def _sampled(model: str, row: RowMapping) -> Sampled:
    billed = Tokens(row["billed_prompt"], row["billed_cached"], row["billed_output"], row["billed_written"])
    return Sampled(
        model=model,
        tenant=row["tenant"],
        pool=row["pool"],
        class_=row["class"],
        contract=row["contract"],
        line=row["line"],
        decision=row["decision"],
        started_ms=row["started_ms"],
        billed=billed,
    )


def rate(
    requests: Collection[Sampled], before: PriceBook, after: PriceBook, at_ms: int
) -> dict[tuple[str, str], Rated]:
    """What they would cost if they started at this moment, by model and class (`batch`: lines of batches)."""
    found: dict[tuple[str, str], Rated] = {}
    for request in requests:
        rated = found.setdefault((request.model, "batch" if request.line else request.class_), Rated())
        rated.requests += 1
        for book in (before, after):
            price = book.at(request.model, at_ms, price_scopes(request, book))
            if price is None:
                rated.unpriced += book is after
            elif book is before:
                rated.before += price.amount(request.billed)
            else:
                rated.after += price.amount(request.billed)
    return dict(sorted(found.items()))
