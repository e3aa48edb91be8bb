"""Projects the catalogue from SQL to Redis: at once, and reliably after an outage.

It writes `taas:key:*`, `taas:tenant:*`, `taas:models`, `taas:cells`, `taas:drained`, `taas:changes` and, in
`taas:instances`, the entries without a lease (`engine_watch` then updates their load and status). Changes
wait in the outbox. They go to Redis in one MULTI together with their entries in `taas:changes` and a new
marker. Writers take turns by a lock in SQL, so that nobody writes what it read before another's change. If
the marker is not the one that SQL expects, Redis was emptied, restored or exchanged: then everything is
written again, and what is not in SQL is removed.
"""

import logging
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import redis
from sqlalchemy import Connection, Engine, Select, exists, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from billing.catalogue import budget_publication, outbox, projected
from billing.catalogue.outbox import CatalogueChange, ChangeKind
from billing.schema.catalogue import projection_outbox, projection_state
from billing.schema.locks import AdvisoryLock
from billing.wire import redis_keys

_log = logging.getLogger(__name__)

# How often `keep_up` should be called: an emptied Redis is filled again within this time.
KEEP_UP_INTERVAL_MS: Final = 1_000
# One MULTI: a few ms of Redis, so that a flood of changes does not hold up the gateways' scripts.
_CHANGES_MAX: Final = 200
# An admin call answers "saved, not yet in effect" rather than wait longer for a slow Redis.
_LOCK_TIMEOUT_MS: Final = 5_000
_SALT_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class _Marker:
    """Which database wrote to Redis, and how many times."""

    source: str
    version: int

    def __str__(self) -> str:
        return f"{self.source}:{self.version}"


@dataclass(frozen=True, slots=True)
class ProjectionState:
    """The marker that Redis should have, and whether a change waits."""

    source: str
    version: int
    waits: bool


def select_state() -> Select[str, int, bool]:
    """A query for this state, to be combined with others."""
    waits = exists(select(projection_outbox.c.change_id)).label("waits")
    return select(projection_state.c.source, projection_state.c.version, waits)


class Projector:
    """Keeps Redis equal to SQL. Any thread may call it, in several processes at once."""

    def __init__(self, engine: Engine, client: redis.Redis) -> None:
        self._engine = engine
        self._looks = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._client = client
        self._rebuilt = False

    def deliver(self) -> bool:
        """Write pending changes to Redis. Returns False if that was not possible; `keep_up` will do it
        later.
        """
        try:
            while self._deliver_some():
                pass
        except (redis.RedisError, SQLAlchemyError) as exc:
            _log.warning("what changed waits in the outbox: %s", type(exc).__name__)
            return False
        return True

    def keep_up(self, read_state: Callable[[], ProjectionState] | None = None) -> bool:
        """A loop's step: write everything once, then pending changes. `read_state` reads the state in SQL, as
        `select_state` does. Returns True if there may be more. Raises redis.RedisError, SQLAlchemyError.
        """
        if not self._rebuilt:
            self.rebuild()
            self._rebuilt = True
            return True
        return self._behind((read_state or self._read_state)()) and self._deliver_some()

    def rebuild(self) -> None:
        """Write everything, and remove what is not in SQL. Raises redis.RedisError, SQLAlchemyError."""
        with self._engine.begin() as connection:
            marker = _lock(connection)
            self._rebuild(connection, marker)

    def _read_state(self) -> ProjectionState:
        with self._looks.connect() as connection:
            return ProjectionState(*connection.execute(select_state()).one())

    def _behind(self, state: ProjectionState) -> bool:
        """Whether Redis may lack something. It takes no lock, because there is nearly always nothing."""
        marker = _Marker(state.source, state.version)
        return state.waits or self._client.get(redis_keys.PROJECTION) not in _spellings(marker)

    def _deliver_some(self) -> bool:
        """Write some changes; returns whether there may be more. Rebuilds if the marker is not ours."""
        with self._engine.begin() as connection:
            marker = _lock(connection)
            changes = outbox.pending(connection, _CHANGES_MAX)
            changed = [change.subject for change in changes if change.kind is ChangeKind.TENANT]
            if changed:
                # Before the tenant's entry, by which gateways know that it has budgets.
                budget_publication.publish(self._client, connection, set(changed))
            with self._client.pipeline(transaction=True) as pipe:
                # Redis may be emptied between this reading and the write. Then the write fails, and the
                # caller tries again.
                _watch(pipe)
                if pipe.get(redis_keys.PROJECTION) not in _spellings(marker):
                    pipe.unwatch()
                    _log.warning("Redis does not hold the projection as written last; writing all of it")
                    self._rebuild(connection, marker)
                    return True
                if not changes:
                    return False
                pipe.multi()
                _write_changes(pipe, connection, changes)
                _advance(pipe, marker)
                try:
                    pipe.execute()
                except redis.WatchError:
                    return True
            _mark_delivered(connection, marker, changes)
        return True

    def _rebuild(self, connection: Connection, marker: _Marker) -> None:
        # Read first: what is committed meanwhile stays in the outbox and is written again.
        changes = outbox.pending(connection, 10**9)
        tenants = projected.read_tenants(connection, None)
        keys = projected.read_keys(connection, None)
        models = projected.read_models(connection, None)
        instances = projected.read_instances(connection, None)
        drained = projected.read_drained(connection, None)
        budget_publication.publish(self._client, connection, None)
        with self._client.pipeline(transaction=True) as pipe:
            _watch(pipe)
            stale = [
                *self._stale_keys(
                    redis_keys.key_of_api_key("*"), {redis_keys.key_of_api_key(key) for key in keys.live}
                ),
                *self._stale_keys(redis_keys.tenant("*"), {redis_keys.tenant(tenant) for tenant in tenants}),
            ]
            stale_models = [
                name
                for name in map(_text, self._client.hkeys(redis_keys.MODELS))
                if name not in models.entries
            ]
            stale_instances = self._added_by_hand() - set(instances)
            pipe.multi()
            for key in stale:
                pipe.delete(key)
            _delete_fields(pipe, redis_keys.MODELS, stale_models)
            _delete_fields(pipe, redis_keys.INSTANCES, stale_instances)
            for tenant_id, entry in tenants.items():
                pipe.set(redis_keys.tenant(tenant_id), entry)
            for key_hash, entry in keys.live.items():
                pipe.set(redis_keys.key_of_api_key(key_hash), entry)
            _write_fields(pipe, redis_keys.MODELS, models.entries)
            _write_fields(pipe, redis_keys.INSTANCES, instances)
            pipe.delete(redis_keys.DRAINED)
            _write_fields(pipe, redis_keys.DRAINED, drained)
            if models.cells:
                pipe.sadd(redis_keys.CELLS, *models.cells)
            pipe.hsetnx(redis_keys.SECRETS, redis_keys.CACHE_SALT_FIELD, secrets.token_hex(_SALT_BYTES))
            _announce(pipe, "all", "*")
            for change in changes:
                if change.kind is ChangeKind.STOP:
                    _announce(pipe, change.kind, change.subject)
            _advance(pipe, marker)
            pipe.execute()
        _mark_delivered(connection, marker, changes)

    def _stale_keys(self, pattern: str, wanted: set[str]) -> list[str]:
        return [
            key for key in map(_text, self._client.scan_iter(match=pattern, count=1000)) if key not in wanted
        ]

    def _added_by_hand(self) -> set[str]:
        """The instances in Redis that no worker renews."""
        found = self._client.hgetall(redis_keys.INSTANCES)
        return {_text(instance) for instance, entry in found.items() if projected.is_by_hand(entry)}


def _lock(connection: Connection) -> _Marker:
    """Wait for one's turn, which ends with the transaction. Returns the marker that Redis should have."""
    connection.execute(text(f"set local lock_timeout = {_LOCK_TIMEOUT_MS}"))
    connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": AdvisoryLock.PROJECTION})
    row = connection.execute(select(projection_state.c.source, projection_state.c.version)).one()
    return _Marker(row.source, row.version)


def _advance(pipe: "redis.client.Pipeline", marker: _Marker) -> None:
    pipe.set(redis_keys.PROJECTION, str(_Marker(marker.source, marker.version + 1)))


def _mark_delivered(connection: Connection, marker: _Marker, changes: list[CatalogueChange]) -> None:
    """Note that Redis has the changes. If this is not committed, the marker in Redis is ahead of ours, and
    everything is written again.
    """
    connection.execute(update(projection_state).values(version=marker.version + 1))
    outbox.done(connection, changes)


def _write_changes(
    pipe: "redis.client.Pipeline", connection: Connection, changes: list[CatalogueChange]
) -> None:
    def subjects(kind: ChangeKind) -> list[str]:
        return list(dict.fromkeys(change.subject for change in changes if change.kind is kind))

    if tenant_ids := subjects(ChangeKind.TENANT):
        for tenant_id, entry in projected.read_tenants(connection, tenant_ids).items():
            pipe.set(redis_keys.tenant(tenant_id), entry)
            _announce(pipe, ChangeKind.TENANT, tenant_id)
    if key_ids := subjects(ChangeKind.KEY):
        keys = projected.read_keys(connection, key_ids)
        for key_hash in keys.revoked:
            pipe.delete(redis_keys.key_of_api_key(key_hash))
            _announce(pipe, ChangeKind.KEY, key_hash)
        for key_hash, entry in keys.live.items():
            pipe.set(redis_keys.key_of_api_key(key_hash), entry)
            _announce(pipe, ChangeKind.KEY, key_hash)
    if names := subjects(ChangeKind.MODEL):
        models = projected.read_models(connection, names)
        _write_fields(pipe, redis_keys.MODELS, models.entries)
        pipe.sadd(redis_keys.CELLS, *models.cells)
        for name in models.entries:
            _announce(pipe, ChangeKind.MODEL, name)
    if drained_ids := subjects(ChangeKind.DRAIN):
        drained = projected.read_drained(connection, drained_ids)
        _write_fields(pipe, redis_keys.DRAINED, drained)
        _delete_fields(pipe, redis_keys.DRAINED, set(drained_ids) - set(drained))
    if instance_ids := subjects(ChangeKind.INSTANCE):
        instances = projected.read_instances(connection, instance_ids)
        _write_fields(pipe, redis_keys.INSTANCES, instances)
        _delete_fields(pipe, redis_keys.INSTANCES, set(instance_ids) - set(instances))
    for subject in subjects(ChangeKind.STOP):
        _announce(pipe, ChangeKind.STOP, subject)


def announce_stop(client: redis.Redis, request_id: str) -> None:
    """Have the gateways stop one request. Raises redis.RedisError; a stop is not repeated later."""
    fields: dict[Any, Any] = {"kind": ChangeKind.STOP.value, "id": request_id}
    client.xadd(redis_keys.CHANGES, fields, maxlen=redis_keys.CHANGES_MAXLEN, approximate=True)


def _announce(pipe: "redis.client.Pipeline", kind: str, subject: str) -> None:
    pipe.xadd(
        redis_keys.CHANGES,
        {"kind": str(kind), "id": subject},
        maxlen=redis_keys.CHANGES_MAXLEN,
        approximate=True,
    )


def _write_fields(pipe: "redis.client.Pipeline", key: str, entries: projected.Entries) -> None:
    if entries:
        mapping: dict[Any, Any] = dict(entries)
        pipe.hset(key, mapping=mapping)


def _delete_fields(pipe: "redis.client.Pipeline", key: str, fields: Iterable[str]) -> None:
    if gone := list(fields):
        pipe.hdel(key, *gone)


def _watch(pipe: "redis.client.Pipeline") -> None:
    pipe.watch(redis_keys.PROJECTION)  # type: ignore[no-untyped-call]


def _spellings(marker: _Marker) -> tuple[str, bytes]:
    """The names as clients that decode, and clients that do not, read them."""
    return str(marker), str(marker).encode()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def read_cells(client: redis.Redis) -> list[str]:
    """The names of all cells."""
    names: Any = client.smembers(redis_keys.CELLS)
    return sorted(name.decode() for name in names)
