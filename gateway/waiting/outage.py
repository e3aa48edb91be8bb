"""What a tenant may do while Redis is gone: nothing, or a bounded lease that its policy names. Never a limit
per process.

The lease is of the tenant, over all gateways together: each process has its share by the number of processes
last seen alive. What is admitted so settles through the journal. Pure but for the counting.
"""

from collections import deque
from typing import Final

from gateway.catalogue.entries import Tenant

# Rounds of the heartbeat: as long as the lease of one. Redis's clock may jump, as at a failover, and then for
# a round only those count that have beaten since; a lease that was divided among too few would be given
# several times over.
_REMEMBERED_ROUNDS: Final = 5


class OutageLeases:
    """The leases of one process. `heard` is told by the heartbeat while Redis answers."""

    def __init__(self) -> None:
        self._alive: deque[int] = deque([1], maxlen=_REMEMBERED_ROUNDS)
        self._used: dict[str, tuple[int, int]] = {}

    @property
    def gateways_alive(self) -> int:
        """The most of late."""
        return max(self._alive)

    def heard(self, gateways_alive: int) -> None:
        """How many a heartbeat has counted."""
        self._alive.append(max(1, gateways_alive))

    def take(self, tenant: Tenant, cost_mu: int) -> bool:
        """Admit one request against the tenant's lease, if there is one and this process's share has room."""
        policy = tenant.outage
        requests, used_mu = self._used.get(tenant.tenant, (0, 0))
        if (requests + 1) * self.gateways_alive > policy.requests:
            return False
        if (used_mu + cost_mu) * self.gateways_alive > policy.milliunits:
            return False
        self._used[tenant.tenant] = (requests + 1, used_mu + cost_mu)
        return True

    def may_serve(self, tenant: Tenant) -> bool:
        """Whether the tenant's lease has room for another request here."""
        requests, used_mu = self._used.get(tenant.tenant, (0, 0))
        policy = tenant.outage
        return (requests + 1) * self.gateways_alive <= policy.requests and (
            used_mu * self.gateways_alive < policy.milliunits
        )

    def renew(self) -> None:
        """Redis answers again: its limits hold, the next outage has leases of its own."""
        self._used.clear()
