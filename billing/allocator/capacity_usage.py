"""The evidence per contract and minute: assigned, used, lent, borrowed, refused, cut and missing. It reads
and writes the rows of `contract_minute`; other modules compute them. Each function works in the caller's
transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Connection, Select, func, literal_column, select
from sqlalchemy.dialects.postgresql import insert

from billing.allocator.minutes import Minute
from billing.moments import MINUTE_MS
from billing.schema.capacity import contract, contract_minute, contract_shortfall

# Columns that rounds count; cuts come from their seconds.
_LIMITED: Final = ("limited_requests", "limited_concurrency", "limited_cancels")
_NOT_CUT: Final = ("assigned_mu", "used_mu", "lent_mu", "borrowed_mu", "refused", "missing_mu", *_LIMITED)
_FIGURES: Final = (*_NOT_CUT, "cut_mu", "shortfall_mu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of a contract over a time, in mu and requests. `refused`: requests over the contract.
    `limited_…`: requests that the contract had room for and that this limit of its tenant or key refused.
    `shortfall_mu`: what was cut plus what was missing.
    """

    contract_id: str
    tenant_id: str
    pool: str
    minute_ms: int | None
    assigned_mu: int
    used_mu: int
    lent_mu: int
    borrowed_mu: int
    refused: int
    limited_requests: int
    limited_concurrency: int
    limited_cancels: int
    cut_mu: int
    missing_mu: int
    shortfall_mu: int


def write_minutes(connection: Connection, minutes: Mapping[str, Sequence[Minute]]) -> None:
    """Write whole minutes of contracts over the stored ones. A stored minute that is further on stays:
    another allocator was faster.
    """
    rows = [
        {
            "contract_id": contract_id, "minute_ms": each.minute_ms, "cut_mu": 0,
            **{name: getattr(each, name) for name in _NOT_CUT},
        }
        for contract_id, touched in sorted(minutes.items()) for each in touched if not each.empty
    ]  # fmt: skip
    if not rows:
        return
    new = insert(contract_minute)
    connection.execute(
        new.on_conflict_do_update(
            index_elements=["contract_id", "minute_ms"],
            set_={name: new.excluded[name] for name in _NOT_CUT},
            where=contract_minute.c.assigned_mu <= new.excluded.assigned_mu,
        ),
        rows,
    )


def take_cuts(
    connection: Connection, contract_ids: Sequence[str], since_ms: int
) -> dict[tuple[str, int], int]:
    """Add what was cut, second by second, to the minutes; `since_ms` begins one. Returns the mu of each
    contract and minute that changed.
    """
    minute = _minute_of(contract_shortfall.c.second_ms)
    nothing = literal_column("0", BigInteger)
    cuts = (
        select(
            contract_shortfall.c.contract_id,
            minute,
            *[nothing] * len(_NOT_CUT),
            func.sum(contract_shortfall.c.cut_mu),
        )
        .where(
            contract_shortfall.c.contract_id.in_(contract_ids),
            contract_shortfall.c.second_ms >= since_ms,
        )
        .group_by(contract_shortfall.c.contract_id, minute)
    )
    # A minute in which everything was cut has no row yet.
    new = insert(contract_minute).from_select(["contract_id", "minute_ms", *_NOT_CUT, "cut_mu"], cuts)
    changed = new.on_conflict_do_update(
        index_elements=["contract_id", "minute_ms"],
        set_={"cut_mu": new.excluded.cut_mu},
        where=contract_minute.c.cut_mu != new.excluded.cut_mu,
    ).returning(contract_minute.c.contract_id, contract_minute.c.minute_ms, contract_minute.c.cut_mu)
    return {(row.contract_id, row.minute_ms): row.cut_mu for row in connection.execute(changed)}


def read_minute(connection: Connection, contract_id: str, minute_ms: int) -> Minute | None:
    """The stored minute, for a process that continues it without knowing more."""
    row = connection.execute(
        select(contract_minute).where(
            contract_minute.c.contract_id == contract_id, contract_minute.c.minute_ms == minute_ms
        )
    ).one_or_none()
    if row is None:
        return None
    return Minute(
        minute_ms=minute_ms,
        assigned_mu_ms=row.assigned_mu * 1000,
        used_mu=row.used_mu,
        lent_mu=row.lent_mu,
        borrowed_mu=row.borrowed_mu,
        refused=row.refused,
        missing_mu_ms=row.missing_mu * 1000,
        limited_requests=row.limited_requests,
        limited_concurrency=row.limited_concurrency,
        limited_cancels=row.limited_cancels,
    )


def list_minutes(
    connection: Connection,
    *,
    tenant_id: str | None,
    contract_id: str | None,
    from_ms: int,
    until_ms: int,
    most: int,
) -> list[Figures]:
    """The minutes that began in [from, until), by contract and time; `most` + 1 of them if there are more."""
    query = _among(
        select(contract_minute, contract.c.tenant_id, contract.c.pool),
        tenant_id,
        contract_id,
        from_ms,
        until_ms,
    )
    query = query.order_by(contract_minute.c.contract_id, contract_minute.c.minute_ms).limit(most + 1)
    return [Figures(**row._mapping) for row in connection.execute(query)]


def sum_minutes(
    connection: Connection, *, tenant_id: str | None, contract_id: str | None, from_ms: int, until_ms: int
) -> list[Figures]:
    """The sums, one line per contract; `minute_ms` is None."""
    sums = [func.sum(contract_minute.c[name]).cast(BigInteger).label(name) for name in _FIGURES]
    owner = (contract_minute.c.contract_id, contract.c.tenant_id, contract.c.pool)
    query = _among(select(*owner, *sums), tenant_id, contract_id, from_ms, until_ms).group_by(*owner)
    rows = connection.execute(query.order_by(contract_minute.c.contract_id))
    return [Figures(minute_ms=None, **row._mapping) for row in rows]


def _among(
    query: Select[Any], tenant_id: str | None, contract_id: str | None, from_ms: int, until_ms: int
) -> Select[Any]:
    query = query.join_from(contract_minute, contract).where(
        contract_minute.c.minute_ms >= from_ms, contract_minute.c.minute_ms < until_ms
    )
    if tenant_id is not None:
        query = query.where(contract.c.tenant_id == tenant_id)
    return query if contract_id is None else query.where(contract_minute.c.contract_id == contract_id)


def _minute_of(moment_ms: ColumnElement[int]) -> ColumnElement[int]:
    length = literal_column(str(MINUTE_MS), BigInteger)
    return moment_ms.op("/", return_type=BigInteger())(length).op("*", return_type=BigInteger())(length)
