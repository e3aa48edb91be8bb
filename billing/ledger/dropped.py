"""What retention has dropped, for those who would read it: they say so, instead of counting what is not
there.
"""

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, exists, select

from billing.moments import DAY_MS, utc
from billing.refusals import Invalid, NotFound
from billing.schema.chain import usage_chain
from billing.schema.invoices import late_transaction
from billing.schema.ledger import ledger_transaction
from billing.schema.retention import dropped_day, dropped_event

_LAST: Final = 2**63 - 1


def proofs_of(connection: Connection, transaction_ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """Of those of these entries whose event was dropped: the digests (hex) of its two parts."""
    of = dropped_event.c
    query = select(of.transaction_id, of.event, of.internal).where(of.transaction_id.in_(transaction_ids))
    return {row.transaction_id: (row.event.hex(), row.internal.hex()) for row in connection.execute(query)}


def is_dropped(connection: Connection, from_ms: int, until_ms: int) -> bool:
    """Whether events of requests that ended in [from, until) were dropped."""
    of = dropped_day.c
    these = exists().where(of.day.between(from_ms // DAY_MS, (until_ms - 1) // DAY_MS), of.events > 0)
    return bool(connection.execute(select(these)).scalar_one())


def refuse_dropped(connection: Connection, from_ms: int, until_ms: int) -> None:
    """Raises Invalid if these requests cannot be read one by one any more."""
    if is_dropped(connection, from_ms, until_ms):
        raise Invalid(
            f"Requests that ended from {utc(from_ms)} to {utc(until_ms)} were dropped by retention. Sums of "
            "whole hours are kept.",
            param="from",
            code="usage_dropped",
        )


def has_dropped_links(connection: Connection, chain: str, first: int, last: int) -> bool:
    """Whether the events of some of these links of a chain were dropped."""
    of = usage_chain.c
    these = exists().where(
        of.transaction_id == dropped_event.c.transaction_id,
        of.chain == chain,
        of.position.between(first, last),
    )
    return bool(connection.execute(select(these)).scalar_one())


def has_dropped_late(connection: Connection, tenant_id: str, after: int, upto: int) -> bool:
    """Whether some of a tenant's late usage between these entries was dropped."""
    of = late_transaction.c
    these = exists().where(
        of.transaction_id == dropped_event.c.transaction_id, of.tenant_id == tenant_id,
        of.transaction_id > after, of.transaction_id <= upto,
    )  # fmt: skip
    return bool(connection.execute(select(these)).scalar_one())


def refuse_dropped_late(connection: Connection, tenant_id: str, after: int) -> None:
    """Raises Invalid if some of a tenant's late usage after this entry was dropped."""
    if has_dropped_late(connection, tenant_id, after, _LAST):
        raise Invalid(
            "Late usage of that time, or of after it, was dropped by retention.", param="from",
            code="usage_dropped",
        )  # fmt: skip


def refuse_dropped_request(connection: Connection, request_id: str, tenant_id: str | None) -> None:
    """Raises NotFound, which says so, if this request of this tenant (None: of any) was dropped."""
    of = ledger_transaction.c
    query = select(usage_chain.c.chain).where(
        of.request_id == request_id,
        of.transaction_id == dropped_event.c.transaction_id,
        of.transaction_id == usage_chain.c.transaction_id,
    )
    chain = connection.execute(query).scalars().first()
    if chain is not None and tenant_id in {None, chain}:
        raise NotFound(
            f"Request {request_id} was recorded, and its usage event was dropped by retention. Its entry of "
            "the ledger and the proof of its chain are kept.",
            param="request_id",
            code="usage_dropped",
        )
