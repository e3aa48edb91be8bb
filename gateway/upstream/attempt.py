"""One attempt of a request on one instance: what was sent there, and what has come back."""

import asyncio

from msgspec import Struct

from billing.wire.instance_entry import InstanceEntry
from gateway.request import ParsedRequest
from gateway.stream.meter import Meter
from gateway.upstream.adapters import adapter_of
from gateway.upstream.connection import UpstreamConnection


class Attempt(Struct, eq=False, kw_only=True):
    """`in_engine`: the request was sent, so the instance may have it. `answered`: the answer has started.
    `timed_out`: the attempt was given up as too slow. `over`: no more of its answer is read. `started_at`:
    monotonic seconds, 0 before. `heard_at`, `heard_tokens`: when it was last seen to get on, and how far
    (`gateway.upstream.progress`).
    """

    request_id: str
    parsed: ParsedRequest
    instance: InstanceEntry
    meter: Meter
    connection: UpstreamConnection | None = None
    started_at: float = 0.0
    in_engine: bool = False
    answered: bool = False
    timed_out: bool = False
    over: bool = False
    heard_at: float = 0.0
    heard_tokens: int = 0
    _over: asyncio.Event | None = None  # made for the few that are waited for

    @classmethod
    def on(
        cls, instance: InstanceEntry, parsed: ParsedRequest, request_id: str, *, tier: bytes | None = None
    ) -> "Attempt":
        """An attempt that has not started. `tier`: the class that serves it, if that is known already."""
        meter = adapter_of(instance).meter(parsed, tier)
        return cls(request_id=request_id, parsed=parsed, instance=instance, meter=meter)

    @property
    def paused(self) -> bool:
        """Whether its answer is not read on, because its caller does not read."""
        return self.connection is not None and self.connection.paused

    def give_up(self) -> None:
        """Close it as too slow. Another instance may take over."""
        self.timed_out = True
        if self.connection is not None:
            self.connection.close()

    def end(self) -> None:
        """Note that no more of its answer is read."""
        self.over = True
        if self._over is not None:
            self._over.set()

    async def until_over(self) -> None:
        """Wait until no more of its answer is read."""
        if not self.over:
            self._over = self._over or asyncio.Event()
            await self._over.wait()
