"""Closes the books of a month: what is owed to makers and to providers, and what was absorbed, as one entry
of the ledger.

What came late, or got its price later, is in the next month's entry, and nothing is posted twice: what is
owed to makers is brought to what it should be by the end of the month, from sums by hour; else it reads the
requests that ended in the month or came since the last closing. Recording goes on meanwhile.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Numeric, and_, cast, exists, func, insert, select, text, true, tuple_

from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import COST, hold_prices
from billing.invoices import makers, store
from billing.invoices.lines import to_cents
from billing.invoices.paid_for_models import Owed
from billing.invoices.periods import next_name, period
from billing.ledger.accounts import Account, EntryKind, Posting, held_by_entries, record_entry
from billing.ledger.backfill import HELD
from billing.ledger.cost import COST_AMOUNT, COST_PRICE
from billing.ledger.usage_report import usage_between
from billing.moments import DAY_MS, HOUR_MS, utc
from billing.refusals import Conflict, Invalid, NotFound
from billing.schema.books import books
from billing.schema.ledger import ledger_transaction, usage_event

# What requests a closing counts: those that ended since the last month's end, and those of before it that
# were recorded since that was closed. Apart, because each has an index or days of its own.
_COUNTED: Final = (
    "{t}.corrects is null and {t}.transaction_id <= :upto and {e}.ended_ms >= :from "
    "and {e}.ended_ms < :until and ({e}.day = 0 or {e}.day between :from_day and :until_day)",
    "{t}.corrects is null and {t}.transaction_id <= :upto and {t}.transaction_id > :after "
    "and {t}.day <= :from_day and {e}.ended_ms < :from",
)
# What absorbed tokens would have cost, by model and reason.
_ABSORBED: Final = tuple(
    f"""
select e.model, reason.key as reason, sum((reason.value ->> 'prompt')::numeric * p.input_picousd
  + (reason.value ->> 'output')::numeric * p.output_picousd) as amount
from ledger_transaction t join usage_event e using (request_id, day)
cross join lateral jsonb_each(e.absorbed_reasons) reason
cross join lateral ({HELD}) p
where e.absorbed_reasons <> '{{}}' and {counted.format(t="t", e="e")}
group by 1, 2
"""  # noqa: S608 (constants)
    for counted in _COUNTED
)
# A cost price of before the last closing, by a clock that may have been put back since, is read as a new one.
_CLOCK_BACK_MS: Final = HOUR_MS


@dataclass(frozen=True, slots=True)
class Books:
    """A closed month. `ledger_upto`: requests up to this transaction were counted. `statements`: what is owed
    to each maker, by model.
    """

    month: str
    until_ms: int
    ledger_upto: int
    statements: Mapping[str, Sequence[Mapping[str, Any]]]
    closed_ms: int


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account holds; debits are positive."""

    account: str
    holder: str
    amount: Money


def close_books(connection: Connection, month: str, *, now_ms: int) -> Books:
    """Close a month, in UTC, in the caller's transaction. `now_ms`: by the database's clock. Raises Invalid
    for what is no month; Conflict while it lasts, and unless the month before is the last that was closed.
    """
    try:
        _, until_ms = period(month, 1, "UTC")
    except ValueError as exc:
        raise Invalid(str(exc), param="month") from exc
    if now_ms < until_ms:
        raise Conflict(f"The month lasts until {utc(until_ms)}.", param="month", code="period_not_over")
    makers.hold_books(connection)
    last = last_closed(connection)
    if last is not None and month != next_name(last.month):
        raise Conflict(
            f"The books are closed until {last.month}: the next month is {next_name(last.month)}.",
            param="month",
            code="period_not_next",
        )
    span = {
        "upto": _cut(connection), "after": 0 if last is None else last.ledger_upto,
        "from": 0 if last is None else last.until_ms, "until": until_ms,
    }  # fmt: skip
    span |= {"from_day": span["from"] // DAY_MS, "until_day": until_ms // DAY_MS}
    owed = makers.owed(connection, 0, until_ms)
    added: list[Posting] = []
    statements = _statements(connection, owed, added)
    added += _costs(connection, last, span)
    added += _absorbed(connection, span)
    record_entry(connection, EntryKind.BOOKS, month, added)
    made = Books(month, until_ms, span["upto"], statements, now_ms)
    connection.execute(
        insert(books).values(
            month=month, until_ms=until_ms, ledger_upto=made.ledger_upto, statements=statements,
            closed_ms=now_ms,
        )
    )  # fmt: skip
    return made


def _cut(connection: Connection) -> int:
    """The newest transaction. All up to it are committed: the lock has waited for who was recording, and lets
    go of them when the savepoint ends.
    """
    with connection.begin_nested() as savepoint:
        hold_prices(connection)
        upto = store.last_transaction(connection)
        savepoint.rollback()
    return upto


def last_closed(connection: Connection) -> Books | None:
    """The books of the last month that was closed."""
    row = connection.execute(select(books).order_by(books.c.until_ms.desc()).limit(1)).one_or_none()
    return None if row is None else Books(*row)


def find(connection: Connection, month: str) -> Books:
    """Of a closed month. Raises NotFound."""
    row = connection.execute(select(books).where(books.c.month == month)).one_or_none()
    if row is None:
        raise NotFound(f"The books of {month} are not closed; `taas books close` does it.", param="month")
    return Books(*row)


def balances(connection: Connection) -> list[Balance]:
    """Every account and holder of the ledger; together they are zero. Postings of requests are read from sums
    by day and hour: an audit says if they are not the same.
    """
    usage = usage_between(None, None, None).c
    query = select(usage.tenant, usage.model, func.sum(usage.amount_picousd).label("amount")).group_by(
        func.grouping_sets(tuple_(usage.tenant), tuple_(usage.model))
    )
    held = defaultdict(lambda: ZERO, held_by_entries(connection))
    for tenant, model, total in connection.execute(query):
        if total:
            amount = Money.from_sql(total)
            if model is None:
                held[Account.RECEIVABLE, tenant] += amount
            else:
                held[Account.REVENUE, model] -= amount
    return [Balance(*whose, amount) for whose, amount in sorted(held.items())]


def _statements(
    connection: Connection, owed: Sequence[Owed], added: list[Posting]
) -> dict[str, list[dict[str, Any]]]:
    """By maker and model: all that is owed, rounded to cents, less what was posted of it before."""
    sums: defaultdict[tuple[str, str], list[Owed]] = defaultdict(list)
    for each in owed:
        sums[each.maker, each.model].append(each)
    posted = held_by_entries(connection, Account.MAKER)
    found: dict[str, list[dict[str, Any]]] = {}
    for (maker, model), some in sorted(sums.items()):
        before = -posted.get((Account.MAKER, _holder(maker, model)), ZERO)
        amount = to_cents(sum(each.exact for each in some)) - before
        if amount != ZERO:
            added.append(Posting(Account.SHARE, model, amount))
            added.append(Posting(Account.MAKER, _holder(maker, model), -amount))
        found.setdefault(maker, []).append(
            {
                "model": model,
                "billed_prompt": sum(each.prompt for each in some),
                "billed_output": sum(each.output for each in some),
                "revenue": str(Money(round(sum(each.paid for each in some)))),
                "owed_so_far": str(amount + before),
                "amount": str(amount),
            }
        )
    return found


def _holder(maker: str, model: str) -> str:
    return f"{maker}/{model}"


def _costs(connection: Connection, last: Books | None, span: Mapping[str, int]) -> Iterator[Posting]:
    """What providers charge. All that was used at them is read again if a cost price has come for what was
    counted before: it had none.
    """
    held: Mapping[tuple[str, str], Money] = {}
    if last is not None and _priced_since(connection, last):
        span = {**span, "after": 0, "from": 0, "from_day": 0}
        held = held_by_entries(connection, Account.COST)
    sums: Counter[str] = Counter()
    of = ledger_transaction.c
    requests = and_(of.request_id == usage_event.c.request_id, of.day == usage_event.c.day)
    for counted in _COUNTED:
        query = (
            select(usage_event.c.instance, func.sum(cast(COST_AMOUNT, Numeric(38))))
            .select_from(usage_event.join(ledger_transaction, requests).join(COST_PRICE, true()))
            .where(
                usage_event.c.provider.is_not(None),
                text(counted.format(t=ledger_transaction.name, e=usage_event.name)),
            )
            .group_by(usage_event.c.instance)
        )
        for instance, total in connection.execute(query, span):
            sums[instance] += int(total or 0)
    for instance, total in sorted(sums.items()):
        amount = Money(total) - held.get((Account.COST, instance), ZERO)
        if amount != ZERO:
            yield Posting(Account.COST, instance, amount)
            yield Posting(Account.PROVIDER, instance, -amount)


def _priced_since(connection: Connection, last: Books) -> bool:
    of = COST.prices.c
    new = of.created_ms >= last.closed_ms - _CLOCK_BACK_MS, of.valid_from_ms < last.until_ms
    return bool(connection.execute(select(exists().where(*new))).scalar_one())


def _absorbed(connection: Connection, span: Mapping[str, int]) -> Iterator[Posting]:
    """At the price that held for everybody else's."""
    sums: Counter[tuple[str, str]] = Counter()
    for query in _ABSORBED:
        for row in connection.execute(text(query), span):
            sums[row.reason, row.model] += int(row.amount)
    for (reason, model), total in sorted(sums.items()):
        yield Posting(Account.ABSORBED, reason, Money(total))
        yield Posting(Account.FORGONE, model, -Money(total))
