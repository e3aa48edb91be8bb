"""Memory for request bodies that are arriving: a budget for the process and one for each tenant, taken before
a byte is read.

Without it one key could hold a body on each of its connections, since rate limits are checked when a body is
complete. It knows tenants and bytes, no HTTP. Bodies that have arrived completely before they are read do not
count: what a connection buffers bounds them.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from gateway.errors import GatewayError, QuotaExceeded, ReceivingFull
from gateway.waiting.refusals import with_jitter

# A waiting body holds a connection and what came with its head: a few hundred kB at most.
WAITING_MAX: Final = 1_000
WAITING_PER_TENANT_MAX: Final = 100
RETRY_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class ReceivePolicy:
    """How many bytes of arriving bodies may be held, in all and per tenant, and how long a body waits for its
    share.
    """

    bytes_max: int
    bytes_per_tenant_max: int
    wait_s: float


class Receiving:
    """The budget of one process."""

    def __init__(self, policy: ReceivePolicy) -> None:
        self.policy = policy
        self.held_bytes = 0
        self._of_tenant: dict[str, int] = {}
        self._waiting: deque[_Waiter] = deque()
        self._waiting_of_tenant: dict[str, int] = {}

    @property
    def body_bytes_max(self) -> int:
        """No larger body can be received."""
        return min(self.policy.bytes_max, self.policy.bytes_per_tenant_max)

    def held_by(self, tenant: str) -> int:
        """Bytes that bodies of the tenant hold."""
        return self._of_tenant.get(tenant, 0)

    def share(self, tenant: str) -> "Share":
        """For one body. Use it in a `with`, which gives the bytes back at its end, however the body ended."""
        return Share(self, tenant)

    def _fits(self, tenant: str, more_bytes: int) -> bool:
        policy = self.policy
        return (
            self.held_bytes + more_bytes <= policy.bytes_max
            and self.held_by(tenant) + more_bytes <= policy.bytes_per_tenant_max
        )

    def _add(self, tenant: str, more_bytes: int) -> None:
        self.held_bytes += more_bytes
        held = self._of_tenant.get(tenant, 0) + more_bytes
        if held:
            self._of_tenant[tenant] = held
        else:
            self._of_tenant.pop(tenant, None)

    def _wait(self, waiter: "_Waiter") -> None:
        tenant = waiter.share.tenant
        waiting = self._waiting_of_tenant.get(tenant, 0)
        if len(self._waiting) >= WAITING_MAX or waiting >= WAITING_PER_TENANT_MAX:
            raise self._refusal(waiter)
        self._waiting_of_tenant[tenant] = waiting + 1
        if waiter.share.bytes:
            self._waiting.appendleft(waiter)  # finishing what has started is what frees memory
        else:
            self._waiting.append(waiter)

    def _leave(self, waiter: "_Waiter") -> None:
        self._waiting.remove(waiter)
        tenant = waiter.share.tenant
        self._waiting_of_tenant[tenant] -= 1
        if not self._waiting_of_tenant[tenant]:
            del self._waiting_of_tenant[tenant]

    def _grant(self) -> None:
        """Memory came free: grant it in order to the bodies that fit. A tenant's small bodies do not overtake
        its large ones.
        """
        passed_over: set[str] = set()
        for waiter in list(self._waiting):
            tenant = waiter.share.tenant
            if tenant in passed_over or waiter.granted.done():
                continue
            if self._fits(tenant, waiter.more_bytes):
                self._leave(waiter)
                waiter.share.add(waiter.more_bytes)
                waiter.granted.set_result(None)
            else:
                passed_over.add(tenant)

    def _refusal(self, waiter: "_Waiter") -> GatewayError:
        held = self.held_by(waiter.share.tenant)
        if held + waiter.more_bytes > self.policy.bytes_per_tenant_max:
            said = "Too many bytes of this account's requests are being received at once."
            return QuotaExceeded("receiving", said, with_jitter(RETRY_MS))
        return ReceivingFull(with_jitter(RETRY_MS))


class Share:
    """The bytes of the budget that one body holds."""

    __slots__ = ("_budget", "bytes", "tenant")

    def __init__(self, budget: Receiving, tenant: str) -> None:
        self._budget = budget
        self.tenant = tenant
        self.bytes = 0

    def __enter__(self) -> "Share":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bytes:
            self.add(-self.bytes)
            self._budget._grant()

    def add(self, more_bytes: int) -> None:
        """Count this many more bytes for this body; the budget has found that they fit."""
        self.bytes += more_bytes
        self._budget._add(self.tenant, more_bytes)

    def grow(self, size_bytes: int) -> bool:
        """Hold `size_bytes` in all, if there is memory now and no other body of the tenant waits for it."""
        more_bytes = size_bytes - self.bytes
        if more_bytes <= 0:
            return True
        budget = self._budget
        in_turn = bool(self.bytes) or self.tenant not in budget._waiting_of_tenant
        if not in_turn or not budget._fits(self.tenant, more_bytes):
            return False
        self.add(more_bytes)
        return True

    async def wait_to_grow(self, size_bytes: int) -> None:
        """Hold `size_bytes` in all, waiting for memory. Raises QuotaExceeded or ReceivingFull if there is
        none in time.
        """
        waiter = _Waiter(self, size_bytes - self.bytes)
        budget = self._budget
        budget._wait(waiter)
        try:
            async with asyncio.timeout(budget.policy.wait_s):
                await waiter.granted
        except TimeoutError:
            if not waiter.granted.done() or waiter.granted.cancelled():
                raise budget._refusal(waiter) from None
        finally:
            if waiter in budget._waiting:
                budget._leave(waiter)


class _Waiter:
    """A body that waits for a share of the budget."""

    __slots__ = ("granted", "more_bytes", "share")

    def __init__(self, share: Share, more_bytes: int) -> None:
        self.share = share
        self.more_bytes = more_bytes
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
