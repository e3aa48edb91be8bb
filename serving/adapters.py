"""Keeps the adapters of one running engine as the catalogue wants them: loads new ones, drops retired ones,
and says in the instance's entry which it has.

An adapter is loaded if its files fit (`serving.adapter_files`). The engine's name for it holds the digest of
its files: an engine caches prefixes by that name, and other weights must not find them. Requests arrive
once the entry says that it is there; before it is dropped the entry says that it is gone.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from billing.wire import redis_keys
from billing.wire.instance_entry import FILES_SEPARATOR
from serving.adapter_files import AdapterRefused, check_adapter
from serving.engine_client import EngineClient, EngineUnanswering
from serving.registration import Registration
from serving.vllm_command import AdapterSlots

# A refused adapter may have been corrected by then.
RETRY_S: Final = 15.0
_DIGEST_CHARS: Final = 16


class AdapterKeeper:
    """Of one instance. `notice_s`: how long gateways may take to see that one is gone."""

    def __init__(
        self,
        redis: Redis,
        registration: Registration,
        base: Path,
        slots: AdapterSlots,
        *,
        poll_s: float,
        notice_s: float,
        note: Callable[[str], None],
    ) -> None:
        self._redis = redis
        self._registration = registration
        self._base = base
        self._slots = slots
        self._poll_s = poll_s
        self._notice_s = notice_s
        self._note = note
        # Folders of what is loaded, and when what was refused is tried again.
        self._folders: dict[str, str] = {}
        self._retry_at: dict[str, tuple[str, float]] = {}

    async def follow(self, client: EngineClient) -> None:
        """Until cancelled; of an engine that has just started and has none."""
        self._folders, self._retry_at = {}, {}
        while True:
            wanted = await self._read_wanted()
            if wanted is not None:
                await self._make_true(client, wanted)
            await asyncio.sleep(self._poll_s)

    async def _read_wanted(self) -> dict[str, str] | None:
        """Folders by adapter; None if Redis does not say."""
        try:
            raw = await self._redis.hget(redis_keys.MODELS, self._registration.entry.model)
            if raw is None:
                return None
            return {str(name): str(path) for name, path in orjson.loads(raw).get("adapters", {}).items()}
        except (RedisError, OSError, ValueError, AttributeError):
            return None

    async def _make_true(self, client: EngineClient, wanted: dict[str, str]) -> None:
        for name in [name for name, folder in self._folders.items() if wanted.get(name) != folder]:
            await self._drop(client, name)
        entry = self._registration.entry
        if gone := entry.refused_adapters.keys() - wanted.keys():
            refused = {name: why for name, why in entry.refused_adapters.items() if name not in gone}
            await self._registration.publish(replace(entry, refused_adapters=refused))
        now = asyncio.get_running_loop().time()
        for name, folder in wanted.items():
            tried, again_at = self._retry_at.get(name, ("", 0.0))
            if name not in self._folders and (tried != folder or now >= again_at):
                await self._load(client, name, folder)

    async def _load(self, client: EngineClient, name: str, folder: str) -> None:
        try:
            if not self._slots.count:
                raise AdapterRefused(
                    "this worker takes no adapters: start it with --adapters N (TAAS_ADAPTERS)"
                )
            digest = await asyncio.to_thread(check_adapter, Path(folder), self._base, self._slots.rank_max)
            if len(self._folders) >= self._slots.count:
                raise AdapterRefused(f"this worker has its {self._slots.count} adapters: see --adapters")
            engine_name = f"{name}{FILES_SEPARATOR}{digest[:_DIGEST_CHARS]}"
            await client.load_adapter(engine_name, folder)
        except (AdapterRefused, EngineUnanswering) as exc:
            self._retry_at[name] = folder, asyncio.get_running_loop().time() + RETRY_S
            await self._say_refused(name, str(exc))
            return
        self._folders[name] = folder
        self._retry_at.pop(name, None)
        entry = self._registration.entry
        refused = {other: why for other, why in entry.refused_adapters.items() if other != name}
        await self._registration.publish(
            replace(entry, adapters={**entry.adapters, name: engine_name}, refused_adapters=refused)
        )
        self._note(f"adapter {name} is loaded")

    async def _say_refused(self, name: str, why: str) -> None:
        entry = self._registration.entry
        if entry.refused_adapters.get(name) != why:
            self._note(f"adapter {name} is not loaded: {why}")
            await self._registration.publish(
                replace(entry, refused_adapters={**entry.refused_adapters, name: why})
            )

    async def _drop(self, client: EngineClient, name: str) -> None:
        del self._folders[name]
        entry = self._registration.entry
        engine_name = entry.adapters[name]
        left = {other: engine for other, engine in entry.adapters.items() if other != name}
        await self._registration.publish(replace(entry, adapters=left))
        await asyncio.sleep(self._notice_s)
        # Requests that run keep it until they end.
        with contextlib.suppress(EngineUnanswering):
            await client.unload_adapter(engine_name)
        self._note(f"adapter {name} is dropped")
