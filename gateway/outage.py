"""What a tenant may do while Redis is gone: nothing, or a bounded lease that its policy names. Never a limit per process.

The lease is of the tenant, over all gateways together: each process has its share by the number of processes last seen alive. What is admitted
so settles through the journal. Pure but for the counting.
"""

from gateway.catalogue_entries import Tenant


class OutageLeases:
    """The leases of one process. `gateways_alive` is kept up to date by the heartbeat while Redis answers."""

    def __init__(self) -> None:
        self.gateways_alive = 1
        self._used: dict[str, tuple[int, int]] = {}

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
