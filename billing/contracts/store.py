"""Contracts in SQL: rows in and out, and the append-only history. It decides nothing; each function works in
the caller's transaction.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by

from billing.catalogue.names import new_id
from billing.contracts.terms import Clause, Contract, State, Step, Terms
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import NotFound
from billing.schema.capacity import contract as table
from billing.schema.capacity import contract_history, contract_step
from billing.schema.clock import NOW_MS, database_now_ms

CONTRACT_PREFIX: Final = "con_"
# States that hold capacity.
BINDING: Final[tuple[State, ...]] = ("signed", "active", "notice_given")


def _due(now_ms: int | ColumnElement[int]) -> ColumnElement[bool]:
    starts = (table.c.state == "signed") & (table.c.starts_ms <= now_ms)
    ends = or_(*(table.c.state == state for state in BINDING)) & (table.c.effective_end_ms <= now_ms)
    return starts | ends


_BY_START: Final[Order[Contract]] = Order(
    "contracts",
    lambda contract: (contract.terms.starts_ms, contract.contract_id),
    (int, str),
    (table.c.starts_ms, table.c.contract_id),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractEvent:
    """One change. `after`: the whole contract after it. `detail`: what `after` does not show, if there is
    something.
    """

    entry: int
    at_ms: int
    change: str
    by: str
    after: Contract
    detail: dict[str, Any] | None = None


def now_ms(connection: Connection) -> int:
    """The database's clock, which everybody who signs shares."""
    return database_now_ms(connection)


def insert_draft(connection: Connection, terms: Terms, *, by: str, now_ms: int) -> Contract:
    """A new draft; it holds nothing yet."""
    contract = Contract(
        contract_id=new_id(CONTRACT_PREFIX),
        terms=terms,
        state="draft",
        notice_by=None,
        notice_given_ms=None,
        effective_end_ms=terms.ends_ms,
        created_ms=now_ms,
    )
    connection.execute(insert(table).values(_columns(contract)))
    _write_steps(connection, contract)
    _append(connection, contract, "draft", by, now_ms)
    return contract


def save(connection: Connection, contract: Contract, change: str, *, by: str, now_ms: int) -> Contract:
    """Store the contract, and the change in its history."""
    connection.execute(
        update(table).where(table.c.contract_id == contract.contract_id).values(_columns(contract))
    )
    connection.execute(delete(contract_step).where(contract_step.c.contract_id == contract.contract_id))
    _write_steps(connection, contract)
    _append(connection, contract, change, by, now_ms)
    return contract


def note(
    connection: Connection, contract: Contract, change: str, detail: dict[str, Any], *, by: str, now_ms: int
) -> None:
    """Add an entry to the history of a contract that itself does not change."""
    _append(connection, contract, change, by, now_ms, detail)


def find(connection: Connection, contract_id: str, *, tenant_id: str | None = None) -> Contract:
    """A contract by id. With a tenant, another tenant's contract does not exist. Raises NotFound."""
    found = _read(connection, _query().where(table.c.contract_id == contract_id))
    if not found or tenant_id not in {None, found[0].terms.tenant_id}:
        message = f"There is no contract {contract_id!r}; `taas contract list` shows those that are."
        raise NotFound(message, param="contract")
    return found[0]


def list_all(
    connection: Connection,
    *,
    tenant_id: str | None = None,
    pool: str | None = None,
    states: Sequence[State] = (),
    ends_after_ms: int | None = None,
) -> list[Contract]:
    """Those that match all that is given, by start."""
    query = _those(tenant_id, pool, states)
    if ends_after_ms is not None:
        query = query.where(table.c.effective_end_ms > ends_after_ms)
    return _read(connection, query.order_by(*_BY_START.columns))


def list_page(
    connection: Connection,
    asked: PageRequest,
    *,
    tenant_id: str | None = None,
    pool: str | None = None,
    states: Sequence[State] = (),
    within: tuple[int | None, int | None] = (None, None),
) -> Page[Contract]:
    """The same by pages; `within`: those that run at some moment of [from, until)."""
    query = _those(tenant_id, pool, states)
    from_ms, until_ms = within
    if from_ms is not None:
        query = query.where(table.c.effective_end_ms > from_ms)
    if until_ms is not None:
        query = query.where(table.c.starts_ms < until_ms)
    return read_page(connection, query, _BY_START, _contract, asked)


def _those(tenant_id: str | None, pool: str | None, states: Sequence[State]) -> Select[Any]:
    query = _query()
    if tenant_id is not None:
        query = query.where(table.c.tenant_id == tenant_id)
    if pool is not None:
        query = query.where(table.c.pool == pool)
    if states:
        query = query.where(table.c.state.in_(states))
    return query


def lock(connection: Connection, contract_id: str) -> Contract:
    """The contract, locked until the transaction ends. Raises NotFound."""
    connection.execute(
        select(table.c.contract_id).where(table.c.contract_id == contract_id).with_for_update()
    )
    return find(connection, contract_id)


def lock_due(connection: Connection, now_ms: int) -> list[Contract]:
    """Contracts whose state is behind the clock, locked. Those that another transaction has locked are left
    for the next time.
    """
    held = select(table.c.contract_id).where(_due(now_ms)).with_for_update(skip_locked=True)
    ids = connection.execute(held).scalars().all()
    return (
        _read(connection, _query().where(table.c.contract_id.in_(ids)).order_by(table.c.contract_id))
        if ids
        else []
    )


def select_any_due() -> Select[bool]:
    """Whether a state is behind the database's clock now."""
    return select(exists(select(table.c.contract_id).where(_due(NOW_MS))))


def history(connection: Connection, contract_id: str) -> list[ContractEvent]:
    """Every change of one contract, oldest first. Raises NotFound."""
    find(connection, contract_id)
    rows = connection.execute(
        select(contract_history)
        .where(contract_history.c.contract_id == contract_id)
        .order_by(contract_history.c.entry)
    )
    return [
        ContractEvent(
            entry=row.entry,
            at_ms=row.at_ms,
            change=row.change,
            by=row.by,
            after=Contract.from_record(row.after),
            detail=row.detail,
        )
        for row in rows
    ]


def _query() -> Select[Any]:
    pair = func.json_build_array(contract_step.c.from_ms, contract_step.c.mu_s)
    steps = (
        select(func.json_agg(aggregate_order_by(pair, contract_step.c.from_ms)))
        .where(contract_step.c.contract_id == table.c.contract_id)
        .scalar_subquery()
    )
    return select(table, steps.label("steps"))


def _read(connection: Connection, query: Select[Any]) -> list[Contract]:
    return [_contract(row) for row in connection.execute(query)]


def _contract(row: Row[Any]) -> Contract:
    fields = dict(row._mapping)
    own = {name: fields.pop(name) for name in ("contract_id", "state", "notice_by", "notice_given_ms")}
    times = {name: fields.pop(name) for name in ("effective_end_ms", "created_ms")}
    steps = tuple(Step(from_ms, mu_s) for from_ms, mu_s in fields.pop("steps") or ())
    later = tuple(Clause(**clause) for clause in fields.pop("later"))
    return Contract(terms=Terms(**fields, steps=steps, later=later), **own, **times)


def _columns(contract: Contract) -> dict[str, Any]:
    record = asdict(contract)
    terms = record.pop("terms")
    del terms["steps"]
    return {**terms, **record}


def _write_steps(connection: Connection, contract: Contract) -> None:
    rows = [{"contract_id": contract.contract_id, **asdict(step)} for step in contract.terms.steps]
    connection.execute(insert(contract_step), rows)


def _append(
    connection: Connection,
    contract: Contract,
    change: str,
    by: str,
    now_ms: int,
    detail: dict[str, Any] | None = None,
) -> None:
    values: dict[str, Any] = {
        "contract_id": contract.contract_id,
        "change": change,
        "by": by,
        "at_ms": now_ms,
    }
    if detail is not None:
        values["detail"] = detail
    connection.execute(insert(contract_history).values(**values, after=contract.to_record()))
