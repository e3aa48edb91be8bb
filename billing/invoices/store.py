"""Invoices and credit notes in SQL: written once, read, listed. It computes nothing."""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from billing.catalogue.money import Money
from billing.ledger.accounts import EntryKind
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import NotFound
from billing.schema.invoices import document_series, invoice, invoiced
from billing.schema.ledger import ledger_transaction

# The form of numbers, by the kind of the document.
_SERIES: Final = {"invoice": "INV", "credit_note": "CN"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A document as it was issued. `facts`: what it was made of beside the ledger."""

    number: str
    kind: str
    tenant_id: str
    period: str
    from_ms: int
    until_ms: int
    ledger_upto: int
    facts: dict[str, Any]
    document: bytes
    sha256: str
    key_id: str | None
    signature: str | None
    corrects: str | None
    net: Money
    total: Money
    due: Money
    issued_ms: int


_NEWEST_FIRST: Final[Order[Stored]] = Order(
    "invoices",
    lambda each: (-each.issued_ms, each.number),
    (int, str),
    (-invoice.c.issued_ms, invoice.c.number),
)


def next_number(connection: Connection, kind: str) -> str:
    """The next of its series. Whoever takes one holds the series until its transaction ends, so that a number
    that is not used is none.
    """
    statement = upsert(document_series).values(series=_SERIES[kind], last=1)
    last = connection.execute(
        statement.on_conflict_do_update(
            index_elements=["series"], set_={"last": document_series.c.last + 1}
        ).returning(document_series.c.last)
    ).scalar_one()
    return number_of(_SERIES[kind], last)


def number_of(series: str, index: int) -> str:
    """As in `INV-000012`."""
    return f"{series}-{index:06d}"


def write(connection: Connection, each: Stored) -> None:
    """Add a document."""
    connection.execute(
        insert(invoice).values(
            number=each.number,
            kind=each.kind,
            tenant_id=each.tenant_id,
            period=each.period,
            from_ms=each.from_ms,
            until_ms=each.until_ms,
            ledger_upto=each.ledger_upto,
            facts=each.facts,
            document=each.document,
            sha256=each.sha256,
            key_id=each.key_id,
            signature=each.signature,
            corrects=each.corrects,
            net_picousd=each.net.picousd,
            total_picousd=each.total.picousd,
            due_picousd=each.due.picousd,
            issued_ms=each.issued_ms,
        )
    )


def find(connection: Connection, number: str, *, only: str | None = None) -> Stored:
    """By number; of this tenant alone, if one is given. Raises NotFound."""
    query = select(invoice).where(invoice.c.number == number)
    if only is not None:
        query = query.where(invoice.c.tenant_id == only)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"There is no document {number!r}; `taas invoice list` shows those that are.")
    return _stored(row)


def list_page(
    connection: Connection, asked: PageRequest, tenant_id: str | None = None, kind: str | None = None
) -> Page[Stored]:
    """Invoices and credit notes, the newest first."""
    query = select(invoice)
    if tenant_id is not None:
        query = query.where(invoice.c.tenant_id == tenant_id)
    if kind is not None:
        query = query.where(invoice.c.kind == kind)
    return read_page(connection, query, _NEWEST_FIRST, _stored, asked)


def every(connection: Connection) -> list[Stored]:
    """All documents."""
    return [_stored(row) for row in connection.execute(select(invoice).order_by(invoice.c.number))]


def last_of(connection: Connection, tenant_id: str) -> Stored | None:
    """The invoice of the tenant's last period."""
    query = select(invoice).where(invoice.c.kind == "invoice", invoice.c.tenant_id == tenant_id)
    row = connection.execute(query.order_by(invoice.c.until_ms.desc()).limit(1)).one_or_none()
    return None if row is None else _stored(row)


def since(connection: Connection, tenant_id: str, period: str) -> list[Stored]:
    """A tenant's invoices of this period and of those after it, the oldest first."""
    query = select(invoice).where(
        invoice.c.kind == "invoice", invoice.c.tenant_id == tenant_id, invoice.c.period >= period
    )
    return [_stored(row) for row in connection.execute(query.order_by(invoice.c.until_ms))]


def before(connection: Connection, each: Stored) -> Stored | None:
    """The tenant's invoice before this one."""
    query = select(invoice).where(
        invoice.c.kind == "invoice",
        invoice.c.tenant_id == each.tenant_id,
        invoice.c.until_ms <= each.from_ms,
    )
    row = connection.execute(query.order_by(invoice.c.until_ms.desc()).limit(1)).one_or_none()
    return None if row is None else _stored(row)


def credited(connection: Connection, number: str) -> Money:
    """The net amount of an invoice's credit notes, as a positive one."""
    query = select(func.coalesce(func.sum(-invoice.c.net_picousd), 0)).where(invoice.c.corrects == number)
    return Money.from_sql(connection.execute(query).scalar_one())


def notes(connection: Connection, number: str) -> list[tuple[int, Money]]:
    """An invoice's credit notes, the oldest first: the transaction of each, and its net amount, below 0."""
    entry = ledger_transaction.c
    query = (
        select(entry.transaction_id, invoice.c.net_picousd)
        .join(ledger_transaction, entry.subject == invoice.c.number)
        .where(entry.kind == EntryKind.INVOICE.value, invoice.c.corrects == number)
        .order_by(entry.transaction_id)
    )
    return [(row[0], Money.from_sql(row[1])) for row in connection.execute(query)]


def given_back(connection: Connection, number: str) -> Money:
    """The same with its tax."""
    query = select(func.coalesce(func.sum(-invoice.c.total_picousd), 0)).where(invoice.c.corrects == number)
    return Money.from_sql(connection.execute(query).scalar_one())


def last_transaction(connection: Connection) -> int:
    """The newest of the ledger; 0 if it is empty."""
    query = select(func.coalesce(func.max(ledger_transaction.c.transaction_id), 0))
    return int(connection.execute(query).scalar_one())


def close_until(connection: Connection, tenant_id: str, until_ms: int, upto: int) -> None:
    """From now on, what is recorded of a moment before this is late."""
    values = {"until_ms": until_ms, "ledger_upto": upto}
    statement = upsert(invoiced).values(tenant_id=tenant_id, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["tenant_id"], set_=values))


def _stored(row: Row[Any]) -> Stored:
    fields = dict(row._mapping)
    for name in ("net", "total", "due"):
        fields[name] = Money.from_sql(fields.pop(f"{name}_picousd"))
    return Stored(**fields | {"document": bytes(row.document)})
