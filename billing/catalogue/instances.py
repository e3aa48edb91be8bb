"""Instances added by hand, in SQL: engines that somebody else starts. It knows neither HTTP nor Redis.

Instances of `taas worker` are not here; they are in Redis while their lease holds. A removed id can be used
again, each time under a new epoch, by which the audit and usage events distinguish them. One engine may have
only one id, else its counters would be read twice.
"""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from sqlalchemy import Connection, Row, Text, cast, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError, NoResultFound

from billing.catalogue import models, outbox
from billing.catalogue.names import INSTANCE_PREFIX, new_id
from billing.catalogue.outbox import ChangeKind
from billing.refusals import Conflict, Invalid, NotFound
from billing.schema.catalogue import instance as table
from billing.schema.clock import NOW_MS
from billing.wire.engine_kinds import VLLM, is_provider
from billing.wire.routes import generates, pooling_pool

# A removed instance gets no new requests; open ones may end, and its counters are read until then.
DRAIN_MS: Final = 600_000
_URL_CHARS_MAX: Final = 2048
# No user, query, fragment or escape: different programs read those differently.
_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<address>[a-z0-9._-]+(:[0-9]+)?|\[[0-9a-f:.]+\](:[0-9]+)?)(?P<path>(/"
    r"[a-z0-9._~-]*)*)",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """A running engine at the moment it is added: its start, its counters, and the routes that it serves
    (None: all of its model's).
    """

    epoch: str
    abort: bool
    baseline_prompt: int
    baseline_generation: int
    has_counters: bool = True
    counts_requests: bool = False
    routes: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedInstance:
    """One engine added by hand. `engine_key`: the key that it requires, if any. `engine`: its kind.
    `engine_model`: its name for the model, if it is not the model's own. `priority`: whether it schedules by
    priority. `max_concurrency`: its slots, if no calibration says how many it has.
    """

    instance_id: str
    model: str
    pool: str
    cell: str
    url: str
    engine_key: str | None = field(repr=False)
    engine: str
    engine_model: str | None
    max_concurrency: int | None
    routes: list[str] | None
    epoch: str
    abort: bool
    counts: bool
    priority: bool
    baseline_prompt: int
    baseline_generation: int
    removed_ms: int | None
    created_ms: int
    updated_ms: int


def check_url(url: str) -> str:
    """The base URL of an engine without its trailing `/` or `/v1`. Raises Invalid."""
    match = _URL.fullmatch(url) if len(url) <= _URL_CHARS_MAX else None
    if match is None or not _is_address(match["address"]):
        raise Invalid(
            "The URL of an engine is http://HOST:PORT or https://HOST:PORT, perhaps with a path, and "
            "nothing else.",
            param="url",
        )
    base = f"{match['scheme'].lower()}://{match['address'].lower()}{match['path']}"
    return base.rstrip("/").removesuffix("/v1").rstrip("/")


def check_provider_url(url: str) -> None:
    """Raises Invalid if a provider's key would leave this machine unencrypted. `url`: from `check_url`."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
        raise Invalid(
            "The URL of a provider must be https://…, or the key and the prompts could be read on the way. "
            "Only a loopback address (127.0.0.1, ::1, localhost) may be http://….",
            param="url",
        )


def add(
    connection: Connection,
    model: str,
    url: str,
    facts: EngineFacts,
    *,
    engine: str = VLLM,
    engine_key: str | None = None,
    engine_model: str | None = None,
    instance_id: str | None = None,
    priority: bool = False,
    max_concurrency: int | None = None,
) -> AddedInstance:
    """Register an engine for a model. Raises NotFound for the model, Conflict for an id or a URL in use,
    Invalid for a provider of a private model. An engine without token counters may serve several models from
    one URL. If the id was removed before, the caller has closed the last run of its counters.
    """
    entry = models.find(connection, model)
    check_may_serve(entry, engine)
    check_free(connection, entry.name, url, instance_id)
    if facts.has_counters:
        _check_counted_once(connection, url)
    values = {
        "instance_id": instance_id or new_id(INSTANCE_PREFIX),
        "model": entry.name,
        "pool": _pool(entry, facts.routes),
        "cell": entry.cell,
        "url": url,
        "routes": None if facts.routes is None else [*facts.routes],
        "engine_key": engine_key,
        "engine": engine,
        "engine_model": engine_model,
        "max_concurrency": max_concurrency,
        "epoch": facts.epoch,
        "abort": facts.abort,
        "counts": facts.counts_requests,
        "priority": priority,
        "baseline_prompt": facts.baseline_prompt,
        "baseline_generation": facts.baseline_generation,
    }
    # The engine may be the same process as before; the mark makes it another epoch nevertheless.
    epoch_again = literal(f"{facts.epoch}+") + cast(NOW_MS, Text)
    again = {"epoch": epoch_again, "removed_ms": None, "created_ms": NOW_MS, "updated_ms": NOW_MS}
    statement = (
        insert(table)
        .values(values)
        .on_conflict_do_update(
            index_elements=["instance_id"], set_=values | again, where=table.c.removed_ms.is_not(None)
        )
    )
    try:
        with connection.begin_nested():
            row = connection.execute(statement.returning(table)).one()
    except (IntegrityError, NoResultFound) as exc:
        check_free(connection, entry.name, url, instance_id)
        raise Conflict("The same instance is being added by somebody else.") from exc
    outbox.record(connection, ChangeKind.INSTANCE, row.instance_id)
    return _instance(row)


def check_may_serve(model: models.Model, engine: str) -> None:
    """Raises Invalid for a private model at a provider: it would get what its owner sends."""
    if model.owner is not None and is_provider(engine):
        raise Invalid(
            f"{model.name} is private, so it runs on engines of its own only, not at another provider.",
            param="engine",
        )


def check_free(connection: Connection, model: str, url: str, instance_id: str | None) -> None:
    """Raises Conflict when the URL serves this model already or the id is in use."""
    in_use = select(table.c.instance_id).where(table.c.url == url, table.c.removed_ms.is_(None))
    used = connection.execute(in_use.where(table.c.model == model)).scalar()
    if used is not None:
        raise Conflict(f"{url} is instance {used!r} already; remove that first.", param="url")
    if instance_id is not None:
        id_in_use = select(table.c.instance_id).where(
            table.c.instance_id == instance_id, table.c.removed_ms.is_(None)
        )
        if connection.execute(id_in_use).scalar() is not None:
            raise Conflict(f"There is an instance {instance_id!r}; remove that first.", param="instance")


def _check_counted_once(connection: Connection, url: str) -> None:
    """Raises Conflict if another model has this engine: its counters would be compared with two instances."""
    in_use = select(table.c.instance_id, table.c.model).where(
        table.c.url == url, table.c.removed_ms.is_(None)
    )
    other = connection.execute(in_use).first()
    if other is not None:
        raise Conflict(
            f"{url} is instance {other.instance_id!r} of {other.model!r} already, and the audit reads its "
            "token counters once.",
            param="url",
        )


def _pool(model: models.Model, routes: tuple[str, ...] | None) -> str:
    pools = routes is not None and not generates(routes)
    return pooling_pool(model.pool) if pools and generates(model.routes) else model.pool


def find(connection: Connection, instance_id: str) -> AddedInstance:
    """By id, removed or not. Raises NotFound."""
    row = connection.execute(select(table).where(table.c.instance_id == instance_id)).one_or_none()
    if row is None:
        raise NotFound(
            f"No instance {instance_id!r} was added by hand; one of `taas worker` goes when its worker "
            "stops.",
            param="instance",
        )
    return _instance(row)


def list_all(connection: Connection) -> list[AddedInstance]:
    """Instances in use, oldest first."""
    query = (
        select(table).where(table.c.removed_ms.is_(None)).order_by(table.c.created_ms, table.c.instance_id)
    )
    return [_instance(row) for row in connection.execute(query)]


def shown_ids(connection: Connection) -> dict[str, bool]:
    """Instances added by hand that are in Redis, and whether they are removed: their open requests may still
    end.
    """
    not_long = table.c.removed_ms.is_(None) | (table.c.removed_ms + DRAIN_MS > NOW_MS)
    found = connection.execute(select(table.c.instance_id, table.c.removed_ms).where(not_long))
    return {row.instance_id: row.removed_ms is not None for row in found}


def find_removed(connection: Connection, instance_id: str) -> AddedInstance | None:
    """A removed one by id."""
    query = select(table).where(table.c.instance_id == instance_id, table.c.removed_ms.is_not(None))
    row = connection.execute(query).one_or_none()
    return None if row is None else _instance(row)


def remove(connection: Connection, instance_id: str) -> AddedInstance:
    """Remove it: it gets no new requests, and open ones may end. Removing again changes nothing. Raises
    NotFound.
    """
    found = find(connection, instance_id)
    if found.removed_ms is None:
        connection.execute(update(table).where(table.c.instance_id == instance_id).values(removed_ms=NOW_MS))
        outbox.record(connection, ChangeKind.INSTANCE, instance_id)
    return find(connection, instance_id)


def _is_address(address: str) -> bool:
    try:
        parts = urlsplit(f"//{address}")
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _instance(row: Row[Any]) -> AddedInstance:
    return AddedInstance(**row._mapping)
