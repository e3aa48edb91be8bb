"""The gateway's view of the catalogue, all from Redis: it holds all models and instances, and caches keys and
tenants as they are asked for.

A change takes effect within a second on every process: the change feed drops it from the cache. If the feed
has been silent for a second the cache is not trusted, and each look-up goes to Redis. This module only reads;
billing and the workers write.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

from billing.wire import redis_keys
from billing.wire.cancellation import end_tasks
from billing.wire.instance_entry import InstanceEntry, InstanceStatus, read_snapshot
from billing.wire.lease_watch import LeaseWatch
from gateway.catalogue.entries import ApiKey, Model, Tenant
from gateway.catalogue.visible_models import VisibleModels
from gateway.errors import DependencyUnavailable
from gateway.lifecycle import keep_running
from gateway.redis.pipe import RedisPipe, RedisUnavailable

log = logging.getLogger(__name__)

FEED_SILENCE_SECONDS_MAX = 1.0
FEED_BLOCK_MS = 300
INSTANCES_POLL_SECONDS = 0.5
CACHE_ENTRIES_MAX = 200_000
UNKNOWN_ENTRIES_MAX = 50_000


class NotProjected(RedisUnavailable):
    """Redis is new or was emptied, so it cannot say that something does not exist."""

    def __init__(self) -> None:
        super().__init__("no catalogue", unknown_outcome=False)


class Catalogue:
    """Models, instances, keys and tenants. `on_stop(id)` is called for each request or `tenant:<id>` that the
    operator stops.
    """

    def __init__(self, redis: RedisPipe, feed: RedisPipe, on_stop: Callable[[str], None]) -> None:
        self._redis = redis
        self._feed = feed
        self._on_stop = on_stop
        self._keys: dict[str, ApiKey] = {}
        self._unknown_keys: set[str] = set()
        self._tenants: dict[str, Tenant] = {}
        self.models: dict[str, Model] = {}
        self.visible = VisibleModels({})
        self._models_read = asyncio.Event()
        self._instances_read = asyncio.Event()
        # Redis answers but holds nothing that billing wrote.
        self.not_projected = False
        self._instances: dict[str, tuple[InstanceEntry, ...]] = {}
        # Those of a model that serve a route, for the pairs that were asked for since the last reading.
        self._serving: dict[tuple[str, str], tuple[InstanceEntry, ...]] = {}
        # Their entries as last read, by instance id.
        self._registered: dict[bytes, bytes] = {}
        self._leases = LeaseWatch()
        self.cache_salt = ""
        self._fresh_until = 0.0
        self._changes_seen = 0
        self._last_change = "$"
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, wait_s: float) -> None:
        """Read models and instances, and follow the changes. Returns once they are read, or after `wait_s`;
        it then keeps trying.
        """
        self._tasks = [
            keep_running("catalogue-changes", self._follow_changes),
            keep_running("catalogue-instances", self._poll_instances),
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._models_read.wait()
                await self._instances_read.wait()

    async def stop(self) -> None:
        """Stop following."""
        await end_tasks(*self._tasks)

    @property
    def loaded(self) -> bool:
        """Whether models and instances have been read once. Until then, what is not found may exist."""
        return self._models_read.is_set() and self._instances_read.is_set()

    @property
    def fresh(self) -> bool:
        """Whether the cache can be trusted."""
        return time.monotonic() < self._fresh_until

    def instances(self, model: str) -> tuple[InstanceEntry, ...]:
        """The instances of a model whose lease holds, whatever their status."""
        return self._instances.get(model, ())

    def serving(self, model: str, route: str) -> tuple[InstanceEntry, ...]:
        """Those of them that serve a route. `route`: the name under which the model offers it."""
        found = self._serving.get((model, route))
        if found is None:
            found = tuple(entry for entry in self.instances(model) if entry.serves(route))
            self._serving[model, route] = found
        return found

    def instance_ids(self) -> list[str]:
        """Of all models."""
        return [entry.instance for entries in self._instances.values() for entry in entries]

    def tenants_seen(self) -> Iterable[Tenant]:
        """Tenants that have sent requests recently."""
        return self._tenants.values()

    def cached_key(self, key_hash: str) -> tuple[ApiKey, Tenant] | None:
        """A key and its tenant if both are cached and fresh: the fast path."""
        if time.monotonic() >= self._fresh_until:
            return None
        key = self._keys.get(key_hash)
        if key is None:
            return None
        tenant = self._tenants.get(key.tenant)
        return None if tenant is None else (key, tenant)

    async def find_key(self, key_hash: str) -> tuple[ApiKey, Tenant] | None:
        """A key and its tenant, from Redis if they are not cached; None if there is no such key. Raises
        DependencyUnavailable if Redis cannot say.
        """
        if self.fresh and key_hash in self._unknown_keys:
            return None
        changes_seen = self._changes_seen
        try:
            (raw,) = await _read_projected(self._redis, ("GET", redis_keys.key_of_api_key(key_hash)))
            if raw is None:
                if changes_seen == self._changes_seen:
                    self._remember_unknown(key_hash)
                return None
            key = ApiKey.read(raw)
            (raw_tenant,) = await _read_projected(self._redis, ("GET", redis_keys.tenant(key.tenant)))
            if raw_tenant is None:
                return None
            tenant = Tenant.read(raw_tenant)
        except NotProjected as exc:
            raise DependencyUnavailable from exc
        except RedisUnavailable as exc:
            known = self._known_before_outage(key_hash)
            if known is not None:
                return known
            raise DependencyUnavailable from exc
        except ValueError:
            log.error("unreadable catalogue entry", extra={"key_hash_prefix": key_hash[:8]})
            return None
        if changes_seen != self._changes_seen:
            return key, tenant  # what was read may be older than the change: use it once, do not cache it
        if len(self._keys) >= CACHE_ENTRIES_MAX:
            self._keys.clear()
            self._tenants.clear()
        self._keys[key_hash] = key
        self._tenants[key.tenant] = tenant
        return key, tenant

    def _known_before_outage(self, key_hash: str) -> tuple[ApiKey, Tenant] | None:
        """A key as last seen, if its tenant's policy allows requests during an outage."""
        key = self._keys.get(key_hash)
        tenant = None if key is None else self._tenants.get(key.tenant)
        return None if key is None or tenant is None or tenant.outage.requests == 0 else (key, tenant)

    def _remember_unknown(self, key_hash: str) -> None:
        if len(self._unknown_keys) >= UNKNOWN_ENTRIES_MAX:
            self._unknown_keys.clear()
        self._unknown_keys.add(key_hash)

    def _forget_all(self) -> None:
        self._changes_seen += 1
        self._keys.clear()
        self._tenants.clear()
        self._unknown_keys.clear()

    async def _follow_changes(self) -> None:
        """Follow the change feed. After a gap everything cached is dropped, because a change may have been
        missed.
        """
        self._last_change = ""
        while True:
            try:
                if not self._last_change:
                    await self._start_over()
                entries = await self._feed.execute(
                    "XREAD", "BLOCK", FEED_BLOCK_MS, "STREAMS", redis_keys.CHANGES, self._last_change
                )
                if changes := _stream_entries(entries):
                    await self._apply([fields for _, fields in changes])
                    self._last_change = changes[-1][0]
                self._fresh_until = time.monotonic() + FEED_SILENCE_SECONDS_MAX
            except RedisUnavailable:
                self._last_change = ""
                await asyncio.sleep(0.1)

    async def _start_over(self) -> None:
        """Read the position of the feed first and the state second: in this order no change is missed."""
        try:
            last, raw = await _read_projected(
                self._feed,
                ("XREVRANGE", redis_keys.CHANGES, "+", "-", "COUNT", 1),
                ("HGETALL", redis_keys.MODELS),
            )
        except NotProjected:
            self.not_projected = True
            raise
        self.not_projected = False
        self._forget_all()
        self._take_models(_read_models(zip(raw[::2], raw[1::2], strict=True)))
        self._models_read.set()
        await self._feed.execute(
            "HSETNX", redis_keys.SECRETS, redis_keys.CACHE_SALT_FIELD, secrets.token_hex(32)
        )
        (salt,) = await _read_projected(self._feed, ("HGET", redis_keys.SECRETS, redis_keys.CACHE_SALT_FIELD))
        self.cache_salt = salt.decode()
        self._last_change = last[0][0].decode() if last else "0-0"

    async def _apply(self, changes: list[dict[bytes, bytes]]) -> None:
        """Take over what has changed. Models that changed together are read together, and no other model is
        read: while an operator adds a thousand models, the view of them stays current.
        """
        models: set[bytes] = set()
        everything = False
        for fields in changes:
            self._changes_seen += 1
            kind, name = fields.get(b"kind", b""), fields.get(b"id", b"")
            if kind == b"key":
                self._keys.pop(name.decode(), None)
                self._unknown_keys.discard(name.decode())
            elif kind == b"tenant":
                self._tenants.pop(name.decode(), None)
            elif kind == b"model":
                models.add(name)
            elif kind == b"stop":
                self._on_stop(name.decode())
            else:
                everything = True
        if everything:
            await self._start_over()
        elif models:
            await self._reload_models(list(models))

    async def _reload_models(self, names: list[bytes]) -> None:
        (raw,) = await _read_projected(self._feed, ("HMGET", redis_keys.MODELS, *names))
        entries = dict(zip(names, raw, strict=True))
        unchanged = {name: model for name, model in self.models.items() if name.encode() not in entries}
        changed = _read_models((name, entry) for name, entry in entries.items() if entry)
        self._take_models(unchanged | changed)

    def _take_models(self, models: dict[str, Model]) -> None:
        self.models = models
        self.visible = VisibleModels(models)

    async def _poll_instances(self) -> None:
        """Read instances twice a second, so that a draining or dead instance gets no new request within a
        second. While Redis is away, or empty, the last view stays.
        """
        while True:
            with contextlib.suppress(RedisUnavailable):
                now, raw, drained = await _read_projected(
                    self._redis,
                    ("TIME",),
                    ("HGETALL", redis_keys.INSTANCES),
                    ("HKEYS", redis_keys.DRAINED),
                )
                now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
                entries = self._with_lost(dict(zip(raw[::2], raw[1::2], strict=True)))
                live = read_snapshot(entries, now_ms, drained, self._leases.holds)
                held = {entry.instance.encode() for entry in live}
                self._registered = {name: entry for name, entry in entries.items() if name in held}
                self._take_instances(live)
                self._instances_read.set()
            await asyncio.sleep(INSTANCES_POLL_SECONDS)

    def _with_lost(self, registered: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """With the ready instances that the last reading had and this one has not. A worker never removes a
        ready one, so Redis has lost its entry. It serves on: its worker registers it again before its lease
        ends.
        """
        gone = self._registered.keys() - registered.keys()
        return registered | {
            name: self._registered[name] for name in gone if _is_ready(self._registered[name])
        }

    def _take_instances(self, entries: list[InstanceEntry]) -> None:
        by_model: dict[str, list[InstanceEntry]] = {}
        for entry in (each for registered in entries for each in registered.by_model()):
            by_model.setdefault(entry.model, []).append(entry)
        self._instances = {model: tuple(entries) for model, entries in by_model.items()}
        self._serving = {}


def _is_ready(raw: bytes) -> bool:
    """Whether an entry is of a worker's ready instance. Entries without a lease are of billing, which removes
    them.
    """
    entry = InstanceEntry.from_json(raw)
    return entry.status is InstanceStatus.READY and entry.lease_until_ms != 0


def _stream_entries(reply: Any) -> list[tuple[str, dict[bytes, bytes]]]:
    """Entries of an XREAD reply over one stream."""
    if not reply:
        return []
    _, entries = reply[0]
    return [(entry_id.decode(), dict(zip(flat[::2], flat[1::2], strict=True))) for entry_id, flat in entries]


async def _read_projected(redis: RedisPipe, *commands: tuple[Any, ...]) -> list[Any]:
    """The replies, if Redis held what billing projects before and after them. Raises NotProjected: Redis may
    have been emptied, or filled, between two commands.
    """
    projected = ("EXISTS", redis_keys.PROJECTION)
    before, *replies, after = await redis.execute_many([projected, *commands, projected])
    if not before or not after:
        raise NotProjected
    return replies


def _read_models(entries: Iterable[tuple[bytes, bytes]]) -> dict[str, Model]:
    models = {}
    for name, entry in entries:
        try:
            models[name.decode()] = Model.read(entry)
        except ValueError:
            log.error("unreadable model entry", extra={"model": name.decode(errors="replace")})
    return models
