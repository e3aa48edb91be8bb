"""Says again and again, in Redis, what an engine is: for evidence. Nothing else depends on it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from billing.wire import redis_clock
from billing.wire.engine_kinds import VLLM
from billing.wire.evidence import RunningEngine
from serving.engine_client import EngineClient, EngineUnanswering
from serving.private_user import PrivateUser
from serving.registry import publish_engine
from serving.running_engine import ProcessFacts, Weights, read_processes

# How old what is said of a running engine may become.
EVIDENCE_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attester:
    """For one instance. `private`: the user that a private model's engine should have. `note` gets a line for
    people where nothing can be said for now.
    """

    redis: Redis
    instance: str
    weights: Weights
    private: PrivateUser | None
    note: Callable[[str], None]

    async def attest(self, epoch: str, group: int, client: EngineClient) -> None:
        """Of the engine with this process group, until cancelled."""
        started_ms = version = None
        while True:
            try:
                if started_ms is None:
                    started_ms = redis_clock.milliseconds(await self.redis.time())
                    version = await client.version()
                weights = await asyncio.to_thread(self.weights.digests)
                facts = await asyncio.to_thread(read_processes, group, self._own_user)
                running = RunningEngine(
                    epoch=epoch,
                    engine=VLLM,
                    engine_version=version or "",
                    command=facts.command,
                    os_user=facts.os_user,
                    own_user=self._has_own_user(facts),
                    listening=facts.listening,
                    requests_logged=facts.requests_logged,
                    weights=weights,
                    started_ms=started_ms,
                    read_ms=redis_clock.milliseconds(await self.redis.time()),
                )
                await publish_engine(self.redis, self.instance, running)
            except (RedisError, EngineUnanswering, OSError) as exc:
                self.note(f"no evidence of the engine for now: {type(exc).__name__}")
            await asyncio.sleep(EVIDENCE_S)

    @property
    def _own_user(self) -> int | None:
        return self.private.number if self.private is not None and self.private.own else None

    def _has_own_user(self, facts: ProcessFacts) -> bool:
        return facts.numbers == {self._own_user}
