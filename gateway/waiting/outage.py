"""What a tenant may do while Redis is away: nothing, or a bounded local lease that its policy names.

The lease bounds the tenant over all gateways together: each process has a share of it, by the number of
processes last seen alive. Requests admitted under it settle through the journal. Pure except for the
counters.
"""

from collections import deque
from typing import Final

from gateway.catalogue.entries import Tenant

# Rounds of the heartbeat, as long as the lease of one. Redis's clock may jump, as at a failover. Then only
# the gateways that have sent a heartbeat since are counted for one round. A lease divided among too few would
# be given several times over.
_REMEMBERED_ROUNDS: Final = 5


class OutageLeases:
    """The local leases of one process. The heartbeat calls `count_gateways` while Redis answers."""

    def __init__(self) -> None:
        self._alive: deque[int] = deque([1], maxlen=_REMEMBERED_ROUNDS)
        self._used: dict[str, tuple[int, int]] = {}

    @property
    def gateways_alive(self) -> int:
        """The highest of the last counts."""
        return max(self._alive)

    def count_gateways(self, gateways_alive: int) -> None:
        """Note how many gateways a heartbeat has counted."""
        self._alive.append(max(1, gateways_alive))

    def admit(self, tenant: Tenant, cost_mu: int) -> bool:
        """Admit one request under the tenant's lease, if it has one and this process's share is not used
        up.
        """
        policy = tenant.outage
        requests, used_mu = self._used.get(tenant.tenant, (0, 0))
        if (requests + 1) * self.gateways_alive > policy.requests:
            return False
        if (used_mu + cost_mu) * self.gateways_alive > policy.milliunits:
            return False
        self._used[tenant.tenant] = (requests + 1, used_mu + cost_mu)
        return True

    def may_serve(self, tenant: Tenant) -> bool:
        """Whether the tenant's lease admits another request here."""
        requests, used_mu = self._used.get(tenant.tenant, (0, 0))
        policy = tenant.outage
        return (requests + 1) * self.gateways_alive <= policy.requests and (
            used_mu * self.gateways_alive < policy.milliunits
        )

    def renew(self) -> None:
        """Redis answers again and its limits hold. The next outage starts with unused leases."""
        self._used.clear()
