"""Adapters (LoRA) in SQL: models of one owner that engines of a shared model, their base, load beside it.

An adapter is a model like any other, named `BASE:ADAPTER`: it has weights, prices, limits and usage of its
own. Pool and cell are its base's, so both share the machines and what they can do. It knows neither HTTP nor
Redis, and it reads no files: workers do.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select, update
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue import models, outbox
from billing.catalogue.models import ModelSpec
from billing.catalogue.names import ADAPTER_SEPARATOR, check_model_name
from billing.catalogue.outbox import ChangeKind
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import Conflict, Invalid, NotFound
from billing.schema.catalogue import adapter as table
from billing.schema.catalogue import model as model_table
from billing.wire.routes import TEXT_ROUTES


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """An adapter as an operator describes it. `path`: the folder of its files on the machines of its base's
    workers. `owner` is a tenant by id or name.
    """

    base: str
    name: str
    path: str
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One adapter as it is now. `model`: the name that its owner asks for. `owner` is a tenant's id."""

    model: str
    base: str
    path: str
    owner: str
    status: models.Status
    created_ms: int


_QUERY: Final = select(table, model_table.c.owner, model_table.c.status, model_table.c.created_ms).join(
    model_table, model_table.c.name == table.c.model
)
_BY_NAME: Final[Order[Adapter]] = Order("adapters", lambda each: (each.model,), (str,), (table.c.model,))


def create(connection: Connection, spec: AdapterSpec) -> Adapter:
    """A new adapter, active. Raises NotFound for a base or a tenant that is not there, Conflict when the name
    is taken, Invalid for a base that can have none.
    """
    base = models.find(connection, spec.base)
    # Its engines' own names for models and adapters are apart by this; and an adapter is no base.
    if ADAPTER_SEPARATOR in base.name:
        raise Invalid(f"{base.name} is an adapter itself; name its base.", param="model")
    if base.status != "active":
        raise Invalid(f"{base.name} is retired.", param="model")
    routes = tuple(route for route in base.routes if route in TEXT_ROUTES)
    if not routes:
        raise Invalid(f"{base.name} generates no text; only models that do have adapters.", param="model")
    name = f"{base.name}{ADAPTER_SEPARATOR}{spec.name}"
    try:
        check_model_name(name)
    except ValueError as exc:
        raise Invalid(f"{name}: {exc}", param="name") from exc
    made = models.create(
        connection,
        ModelSpec(
            name=name,
            context_tokens=base.context_tokens,
            owner=spec.owner,
            routes=routes,
            vocabulary_tokens=base.vocabulary_tokens,
            default_max_tokens=base.default_max_tokens,
            weights=base.weights,
            chat_template_kwargs=base.chat_template_kwargs,
            pool=base.pool,
            max_body_bytes=base.max_body_bytes,
        ),
    )
    if base.owner not in {None, made.owner}:
        raise Invalid(f"{base.name} is private: only its owner can own an adapter of it.", param="owner")
    connection.execute(insert(table).values(model=name, base=base.name, path=spec.path))
    outbox.record(connection, ChangeKind.MODEL, base.name)
    return _adapter(connection.execute(_QUERY.where(table.c.model == name)).one())


def change_path(connection: Connection, model: str, path: str) -> Adapter:
    """Other files under the same name. Raises NotFound."""
    changed = connection.scalar(
        update(table).where(table.c.model == model).values(path=path).returning(table.c.base)
    )
    if changed is None:
        raise NotFound(f"There is no adapter {model!r}; see `taas adapter list`.", param="name")
    outbox.record(connection, ChangeKind.MODEL, changed)
    return _adapter(connection.execute(_QUERY.where(table.c.model == model)).one())


def list_page(connection: Connection, asked: PageRequest, base: str | None = None) -> Page[Adapter]:
    """Adapters by name, of one base or of all, retired ones too."""
    query = _QUERY if base is None else _QUERY.where(table.c.base == base)
    return read_page(connection, query, _BY_NAME, _adapter, asked)


def read_paths(connection: Connection) -> Mapping[str, Mapping[str, str]]:
    """The folders of active adapters, by base and adapter."""
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    query = _QUERY.where(model_table.c.status == "active").order_by(table.c.model)
    for row in connection.execute(query):
        found[row.base][row.model] = row.path
    return found


def check_status(connection: Connection, model: str, status: models.Status) -> None:
    """Before a model gets this status: engines of its base will load or drop it, if it is an adapter. Raises
    Conflict if it is a base with active adapters: its engines could not be started again.
    """
    base = connection.scalar(select(table.c.base).where(table.c.model == model))
    if base is not None:
        if status == "active" and models.find(connection, base).status != "active":
            raise Conflict(f"Its base {base} is retired.", param="status")
        outbox.record(connection, ChangeKind.MODEL, base)
        return
    active = select(func.count()).select_from(table.join(model_table, model_table.c.name == table.c.model))
    left = connection.scalar(active.where(table.c.base == model, model_table.c.status == "active"))
    if left and status != "active":
        raise Conflict(
            f"{model} has active adapters ({left}); retire them first: `taas adapter list --model {model}`.",
            param="status",
        )


def _adapter(row: Row[Any]) -> Adapter:
    return Adapter(**row._mapping)
