"""Closes the books of a month: what is owed to makers and to providers, and what was absorbed, as one entry
of the ledger.

Each account is brought to what it should be by the end of the month, from all that was recorded. So what came
late, or got its price later, is in the next month's entry, and nothing is posted twice.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Numeric, cast, func, insert, select, text, true

from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import hold_prices
from billing.invoices import makers, store
from billing.invoices.lines import to_cents
from billing.invoices.paid_for_models import Owed
from billing.invoices.periods import next_name, period
from billing.ledger.accounts import Account, EntryKind, Posting, record_entry
from billing.ledger.backfill import HELD
from billing.ledger.cost import COST_AMOUNT, COST_PRICE
from billing.moments import utc
from billing.refusals import Conflict, Invalid, NotFound
from billing.schema.books import books
from billing.schema.ledger import ledger_posting, usage_event

# What absorbed tokens would have cost, by model and reason; of events up to a moment and a transaction.
_ABSORBED: Final = f"""
select e.model, reason.key as reason, sum((reason.value ->> 'prompt')::numeric * p.input_picousd
  + (reason.value ->> 'output')::numeric * p.output_picousd) as amount
from ledger_transaction t join usage_event e using (request_id, day)
cross join lateral jsonb_each(e.absorbed_reasons) reason
cross join lateral ({HELD}) p
where t.corrects is null and t.transaction_id <= :upto and e.ended_ms < :until
  and (t.transaction_id > :after or e.ended_ms >= :from)
group by 1, 2
"""  # noqa: S608 (constants)


@dataclass(frozen=True, slots=True)
class Books:
    """A closed month. `statements`: what is owed to each maker, by model."""

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
    """Close a month, in UTC, in the caller's transaction. Raises Invalid for what is no month; Conflict while
    it lasts, and unless the month before is the last that was closed.
    """
    try:
        _, until_ms = period(month, 1, "UTC")
    except ValueError as exc:
        raise Invalid(str(exc), param="month") from exc
    if now_ms < until_ms:
        raise Conflict(f"The month lasts until {utc(until_ms)}.", param="month", code="period_not_over")
    hold_prices(connection)
    last = last_closed(connection)
    if last is not None and month != next_name(last.month):
        raise Conflict(
            f"The books are closed until {last.month}: the next month is {next_name(last.month)}.",
            param="month",
            code="period_not_next",
        )
    upto = store.last_transaction(connection)
    owed = makers.owed(connection, 0, until_ms)
    added: list[Posting] = []
    statements = _statements(connection, owed, added)
    added += _costs(connection, until_ms)
    added += _absorbed(connection, last, until_ms, upto)
    record_entry(connection, EntryKind.BOOKS, month, added)
    made = Books(month, until_ms, upto, statements, now_ms)
    connection.execute(
        insert(books).values(
            month=month, until_ms=until_ms, ledger_upto=upto, statements=statements, closed_ms=now_ms
        )
    )
    return made


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
    """Every account and holder of the ledger; together they are zero."""
    query = (
        select(ledger_posting.c.account, ledger_posting.c.holder, func.sum(ledger_posting.c.amount_picousd))
        .group_by(ledger_posting.c.account, ledger_posting.c.holder)
        .order_by(ledger_posting.c.account, ledger_posting.c.holder)
    )
    return [Balance(row[0], row[1], Money.from_sql(row[2])) for row in connection.execute(query)]


def _statements(
    connection: Connection, owed: Sequence[Owed], added: list[Posting]
) -> dict[str, list[dict[str, Any]]]:
    """By maker and model: all that is owed, rounded to cents, less what was posted of it before."""
    sums: defaultdict[tuple[str, str], list[Owed]] = defaultdict(list)
    for each in owed:
        sums[each.maker, each.model].append(each)
    posted = _held(connection, Account.MAKER)
    found: dict[str, list[dict[str, Any]]] = {}
    for (maker, model), some in sorted(sums.items()):
        before = -posted.get(_holder(maker, model), ZERO)
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


def _costs(connection: Connection, until_ms: int) -> Iterator[Posting]:
    """What providers charge for all that was used at them."""
    query = (
        select(usage_event.c.instance, func.sum(cast(COST_AMOUNT, Numeric(38))))
        .select_from(usage_event.join(COST_PRICE, true()))
        .where(usage_event.c.provider.is_not(None), usage_event.c.ended_ms < until_ms)
        .group_by(usage_event.c.instance)
        .order_by(usage_event.c.instance)
    )
    held = _held(connection, Account.COST)
    for instance, total in connection.execute(query):
        amount = Money.from_sql(total or 0) - held.get(instance, ZERO)
        if amount != ZERO:
            yield Posting(Account.COST, instance, amount)
            yield Posting(Account.PROVIDER, instance, -amount)


def _absorbed(connection: Connection, last: Books | None, until_ms: int, upto: int) -> Iterator[Posting]:
    """At the price that held for everybody else's."""
    values = {
        "upto": upto,
        "until": until_ms,
        "after": 0 if last is None else last.ledger_upto,
        "from": 0 if last is None else last.until_ms,
    }
    for row in connection.execute(text(_ABSORBED), values):
        amount = Money.from_sql(row.amount)
        yield Posting(Account.ABSORBED, row.reason, amount)
        yield Posting(Account.FORGONE, row.model, -amount)


def _held(connection: Connection, account: Account) -> dict[str, Money]:
    query = (
        select(ledger_posting.c.holder, func.sum(ledger_posting.c.amount_picousd))
        .where(ledger_posting.c.account == account.value)
        .group_by(ledger_posting.c.holder)
    )
    return {row[0]: Money.from_sql(row[1]) for row in connection.execute(query)}
