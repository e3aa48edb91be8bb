"""Models in SQL: the names that callers ask for, who may see them, and the weights of their tokens. It knows
neither HTTP nor Redis.

Weights are versioned rows: a usage event names the version by which it was charged. A model's pool and cell
first get its name.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue import outbox, tenants
from billing.catalogue.names import ADAPTER_SEPARATOR
from billing.catalogue.outbox import ChangeKind
from billing.page import Order, Page, PageRequest, contains, read_page
from billing.refusals import Conflict, Invalid, NotFound
from billing.schema.catalogue import model as table
from billing.schema.catalogue import model_audience, model_weights
from billing.schema.locks import AdvisoryLock
from billing.wire.routes import TEXT_ROUTES, pooling_pool, unpooled

Status = Literal["active", "retired"]
# The output of a request without a limit; half the context if that is less.
_DEFAULT_MAX_TOKENS: Final = 1024
# Columns that a change sets as given.
_PLAIN_COLUMNS: Final = (
    "status", "engine_model", "context_tokens", "vocabulary_tokens", "default_max_tokens", "max_body_bytes",
    "takes_batches",
)  # fmt: skip
_AUDIENCE: Final = func.array(
    select(model_audience.c.tenant_id)
    .where(model_audience.c.model == table.c.name)
    .order_by(model_audience.c.tenant_id)
    .scalar_subquery()
).label("audience")

_QUERY: Final = select(
    table, model_weights.c.w_in_mu, model_weights.c.w_cached_mu, model_weights.c.w_out_mu, _AUDIENCE
).join(
    model_weights,
    (model_weights.c.model == table.c.name) & (model_weights.c.version == table.c.weights_version),
)

# `everyone`, `internal`, or the tenants named.
Visible = Literal["everyone", "internal"] | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """Milliunits per token. The defaults hold until a calibration measures them: input is cheap, cached input
    nearly free, output expensive.
    """

    w_in_mu: int = 1000
    w_cached_mu: int = 100
    w_out_mu: int = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model as an operator describes it. `visible` and `owner` name tenants by id or name."""

    name: str
    context_tokens: int
    visible: Visible = "everyone"
    owner: str | None = None
    routes: tuple[str, ...] = TEXT_ROUTES
    engine_model: str | None = None
    vocabulary_tokens: int | None = None
    default_max_tokens: int | None = None
    weights: Weights = Weights()
    weights_version: int = 1
    chat_template_kwargs: tuple[str, ...] = ()
    pool: str | None = None
    max_body_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChange:
    """The fields that an operator changes; None leaves a field."""

    status: Status | None = None
    visible: Visible | None = None
    routes: tuple[str, ...] | None = None
    engine_model: str | None = None
    context_tokens: int | None = None
    vocabulary_tokens: int | None = None
    default_max_tokens: int | None = None
    weights: Weights | None = None
    weights_version: int | None = None
    chat_template_kwargs: tuple[str, ...] | None = None
    max_body_bytes: int | None = None
    takes_batches: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model as it is now; tenants by id."""

    name: str
    pool: str
    cell: str
    visible: Visible
    owner: str | None
    routes: tuple[str, ...]
    engine_model: str
    context_tokens: int
    vocabulary_tokens: int | None
    default_max_tokens: int
    weights_version: int
    weights: Weights
    chat_template_kwargs: tuple[str, ...]
    status: Status
    max_body_bytes: int | None
    takes_batches: bool
    created_ms: int
    updated_ms: int

    def versioned_weights(self) -> dict[str, int]:
        """Its weights and their version, as JSON has them."""
        return {"version": self.weights_version, **asdict(self.weights)}


_BY_NAME: Final[Order[Model]] = Order("models", lambda model: (model.name,), (str,), (table.c.name,))


def create(connection: Connection, spec: ModelSpec) -> Model:
    """A new model, active. Raises Conflict when the name is taken, Invalid, NotFound for a tenant that is
    not there.
    """
    owner, visible = _audience(connection, spec.owner, spec.visible)
    default_max_tokens = spec.default_max_tokens or min(_DEFAULT_MAX_TOKENS, max(1, spec.context_tokens // 2))
    _check_tokens(spec.context_tokens, default_max_tokens)
    if ADAPTER_SEPARATOR not in spec.name:
        _check_pool(connection, spec.pool or spec.name, owner)
    inserted = connection.execute(
        insert(table)
        .values(
            name=spec.name,
            pool=spec.pool or spec.name,
            cell=spec.pool or spec.name,
            visible=_visible_column(visible),
            owner=owner,
            routes=_unique(spec.routes),
            engine_model=spec.engine_model or spec.name,
            context_tokens=spec.context_tokens,
            vocabulary_tokens=spec.vocabulary_tokens,
            default_max_tokens=default_max_tokens,
            weights_version=spec.weights_version,
            chat_template_kwargs=_unique(spec.chat_template_kwargs),
            max_body_bytes=spec.max_body_bytes,
        )
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(table.c.name)
    ).one_or_none()
    if inserted is None:
        raise Conflict(f"There is a model named {spec.name!r} already.", param="name")
    _set_audience(connection, spec.name, visible)
    _add_weights(connection, spec.name, spec.weights_version, spec.weights)
    outbox.record(connection, ChangeKind.MODEL, spec.name)
    return find(connection, spec.name)


def find(connection: Connection, name: str) -> Model:
    """By name, retired or not. Raises NotFound."""
    found = _read(connection, name)
    if not found:
        raise NotFound(
            f"There is no model {name!r}; add it with `taas model add {name} --context TOKENS`.",
            param="model",
        )
    return found[0]


def list_all(connection: Connection) -> list[Model]:
    """Every model, by name."""
    return _read(connection, None)


def names_in_pool(connection: Connection, pool: str) -> list[str]:
    """The models of a pool, retired ones too."""
    return list(connection.scalars(select(table.c.name).where(table.c.pool == pool).order_by(table.c.name)))


def owners_of_pool(connection: Connection, pool: str) -> set[str | None]:
    """Whose the models of a pool are, retired ones too. Adapters are left out: they are in their base's pool,
    whosever it is.
    """
    query = select(table.c.owner).where(table.c.pool == pool, ~contains(table.c.name, ADAPTER_SEPARATOR))
    return set(connection.scalars(query))


def list_page(
    connection: Connection,
    asked: PageRequest,
    *,
    name: str | None = None,
    status: Status | None = None,
    pool: str | None = None,
) -> Page[Model]:
    """Models by name; those whose name contains `name`, those in this status, those of a pool."""
    query = _QUERY
    if name is not None:
        query = query.where(contains(table.c.name, name))
    if status is not None:
        query = query.where(table.c.status == status)
    if pool is not None:
        query = query.where(table.c.pool == pool)
    return read_page(connection, query, _BY_NAME, _model, asked)


def change(connection: Connection, name: str, wanted: ModelChange) -> Model:
    """Set what is given; new weights become a new version. Raises NotFound, Invalid."""
    # The row is locked, so that two concurrent changes do not make the same version of weights.
    connection.execute(select(table.c.name).where(table.c.name == name).with_for_update())
    now = find(connection, name)
    columns: dict[str, Any] = {}
    for column in _PLAIN_COLUMNS:
        value = getattr(wanted, column)
        if value is not None:
            columns[column] = value
    if wanted.routes is not None:
        columns["routes"] = _unique(wanted.routes)
    if wanted.chat_template_kwargs is not None:
        columns["chat_template_kwargs"] = _unique(wanted.chat_template_kwargs)
    if wanted.visible is not None:
        _, visible = _audience(connection, now.owner, wanted.visible)
        columns["visible"] = _visible_column(visible)
        _set_audience(connection, name, visible)
    if wanted.weights is not None and wanted.weights != now.weights:
        version = wanted.weights_version or now.weights_version + 1
        if version <= now.weights_version:
            raise Invalid(f"New weights are a version after {now.weights_version}.", param="weights.version")
        columns["weights_version"] = version
        _add_weights(connection, name, version, wanted.weights)
    _check_tokens(
        columns.get("context_tokens", now.context_tokens),
        columns.get("default_max_tokens", now.default_max_tokens),
    )
    if columns:
        connection.execute(update(table).where(table.c.name == name).values(columns))
        outbox.record(connection, ChangeKind.MODEL, name)
    return find(connection, name)


def _read(connection: Connection, name: str | None) -> list[Model]:
    query = _QUERY.order_by(table.c.name)
    if name is not None:
        query = query.where(table.c.name == name)
    return [_model(row) for row in connection.execute(query)]


def _model(row: Row[Any]) -> Model:
    fields = dict(row._mapping)
    audience = tuple(fields.pop("audience"))
    weights = Weights(fields.pop("w_in_mu"), fields.pop("w_cached_mu"), fields.pop("w_out_mu"))
    fields["visible"] = audience if fields["visible"] == "tenants" else fields["visible"]
    fields["routes"] = tuple(fields["routes"])
    fields["chat_template_kwargs"] = tuple(fields["chat_template_kwargs"])
    return Model(**fields, weights=weights)


def _audience(connection: Connection, owner: str | None, visible: Visible) -> tuple[str | None, Visible]:
    """Owner and audience by id. An owned model is visible to its owner only, whatever else is given."""
    ids = visible if isinstance(visible, str) else _tenant_ids(connection, visible)
    if owner is None:
        if not ids:
            raise Invalid("Name at least one tenant that may see the model, or retire it.", param="visible")
        return None, ids
    owner_id = tenants.find(connection, owner, param="owner").tenant_id
    if ids not in {"everyone", (owner_id,)}:
        raise Invalid("A model with an owner is visible to its owner only.", param="visible")
    return owner_id, (owner_id,)


def _check_pool(connection: Connection, pool: str, owner: str | None) -> None:
    """Raises Conflict if a private model would share a pool with models that are not its owner's: they would
    share contracts and what they can do.
    """
    connection.execute(select(func.pg_advisory_xact_lock(AdvisoryLock.POOL_OWNERS)))
    for shared in (pool, pooling_pool(pool), unpooled(pool)):
        if owners_of_pool(connection, shared) - {owner}:
            raise Conflict(
                f"Pool {shared!r} has models of another owner, and a private model shares a pool with models "
                "of its owner only. Give another `pool`.",
                param="pool",
            )


def _tenant_ids(connection: Connection, named: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({tenants.find(connection, tenant, param="visible").tenant_id for tenant in named}))


def _visible_column(visible: Visible) -> str:
    return visible if isinstance(visible, str) else "tenants"


def _set_audience(connection: Connection, name: str, visible: Visible) -> None:
    connection.execute(delete(model_audience).where(model_audience.c.model == name))
    if not isinstance(visible, str):
        rows = [{"model": name, "tenant_id": tenant_id} for tenant_id in visible]
        connection.execute(insert(model_audience), rows)


def _add_weights(connection: Connection, name: str, version: int, weights: Weights) -> None:
    connection.execute(insert(model_weights).values(model=name, version=version, **asdict(weights)))


def _check_tokens(context_tokens: int, default_max_tokens: int) -> None:
    if default_max_tokens > context_tokens:
        raise Invalid(
            f"default_max_tokens ({default_max_tokens}) is more than the context holds ({context_tokens}).",
            param="default_max_tokens",
        )


def _unique(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))
