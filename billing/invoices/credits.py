"""Prepaid credits in SQL: granted, used by invoices the oldest first, expired. It knows no HTTP."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, func, insert, select

from billing.catalogue.money import ZERO, Money
from billing.catalogue.names import new_id
from billing.contracts.timeline import FOREVER_MS
from billing.ledger.accounts import Account, EntryKind, Posting, record_entry
from billing.page import Order, Page, PageRequest, read_page
from billing.schema.invoices import credit_grant, credit_use

CREDIT_PREFIX: Final = "crd_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """One grant. `used`: by invoices. It pays for usage until it expires; None: for ever."""

    credit: str
    tenant_id: str
    amount: Money
    granted_ms: int
    expires_ms: int | None
    note: str | None
    used: Money

    def left(self, now_ms: int) -> Money:
        """What of it can still pay for usage of now."""
        return ZERO if self.expires_ms is not None and self.expires_ms <= now_ms else self.rest

    @property
    def rest(self) -> Money:
        """What no invoice has used."""
        return self.amount - self.used


# In which invoices use them: of those of one moment the one that expires first.
_OLDEST_FIRST: Final[Order[Credit]] = Order(
    "credits",
    lambda credit: (
        credit.granted_ms,
        FOREVER_MS if credit.expires_ms is None else credit.expires_ms,
        credit.credit,
    ),
    (int, int, str),
    (
        credit_grant.c.granted_ms,
        func.coalesce(credit_grant.c.expires_ms, FOREVER_MS),
        credit_grant.c.grant_id,
    ),
)


def grant(
    connection: Connection,
    tenant_id: str,
    amount: Money,
    now_ms: int,
    *,
    expires_ms: int | None = None,
    note: str | None = None,
) -> Credit:
    """Give a tenant a credit, from now on."""
    made = Credit(
        credit=new_id(CREDIT_PREFIX),
        tenant_id=tenant_id,
        amount=amount,
        granted_ms=now_ms,
        expires_ms=expires_ms,
        note=note,
        used=ZERO,
    )
    connection.execute(
        insert(credit_grant).values(
            grant_id=made.credit,
            tenant_id=tenant_id,
            amount_picousd=amount.picousd,
            granted_ms=now_ms,
            expires_ms=expires_ms,
            note=note,
        )
    )
    record_entry(
        connection,
        EntryKind.GRANT,
        made.credit,
        [Posting(Account.FUNDS, tenant_id, amount), Posting(Account.CREDITS, tenant_id, -amount)],
    )
    return made


def list_page(connection: Connection, asked: PageRequest, tenant_id: str | None = None) -> Page[Credit]:
    """Of a tenant, or of all, in the order in which invoices use them: the oldest first."""
    query = _select()
    if tenant_id is not None:
        query = query.where(credit_grant.c.tenant_id == tenant_id)
    return read_page(connection, query, _OLDEST_FIRST, _credit, asked)


def of_tenant(connection: Connection, tenant_id: str) -> list[Credit]:
    """All of a tenant's, the oldest first; of those of one moment, the one that expires first."""
    query = _select().where(credit_grant.c.tenant_id == tenant_id)
    return [_credit(row) for row in connection.execute(query.order_by(*_OLDEST_FIRST.columns))]


def choose(
    credits: Sequence[Credit],
    owed: Money,
    from_ms: int,
    until_ms: int,
    used_before: Callable[[int], Money],
) -> list[tuple[str, Money]]:
    """What of each credit pays for a period, the oldest first. One that expires within the period pays for
    what was used before (`used_before` of a moment), as far as older ones have not.
    """
    taken: list[tuple[str, Money]] = []
    paid = ZERO
    for credit in credits:
        if credit.granted_ms >= until_ms or (credit.expires_ms is not None and credit.expires_ms <= from_ms):
            continue
        most = owed - paid
        if credit.expires_ms is not None and credit.expires_ms < until_ms:
            most = min(most, used_before(credit.expires_ms) - paid)
        part = min(most, credit.rest)
        if part > ZERO:
            taken.append((credit.credit, part))
            paid += part
    return taken


def use(connection: Connection, number: str, taken: Sequence[tuple[str, Money]]) -> None:
    """Note what an invoice takes; its own entry in the ledger has the amounts."""
    rows = [
        {"number": number, "grant_id": credit, "amount_picousd": amount.picousd} for credit, amount in taken
    ]
    if rows:
        connection.execute(insert(credit_use), rows)


def expire(connection: Connection, tenant_id: str, until_ms: int) -> None:
    """Record that what no invoice can use any more has expired."""
    for credit in of_tenant(connection, tenant_id):
        if credit.expires_ms is not None and credit.expires_ms <= until_ms and credit.rest > ZERO:
            lines = [
                Posting(Account.CREDITS, tenant_id, credit.rest),
                Posting(Account.EXPIRED, tenant_id, -credit.rest),
            ]
            record_entry(connection, EntryKind.EXPIRY, credit.credit, lines)


def _select() -> Select[Any]:
    used = (
        select(credit_use.c.grant_id, func.sum(credit_use.c.amount_picousd).label("used"))
        .group_by(credit_use.c.grant_id)
        .subquery()
    )
    return select(credit_grant, func.coalesce(used.c.used, 0).label("used")).outerjoin(
        used, used.c.grant_id == credit_grant.c.grant_id
    )


def _credit(row: Row[Any]) -> Credit:
    return Credit(
        credit=row.grant_id,
        tenant_id=row.tenant_id,
        amount=Money.from_sql(row.amount_picousd),
        granted_ms=row.granted_ms,
        expires_ms=row.expires_ms,
        note=row.note,
        used=Money.from_sql(row.used),
    )
