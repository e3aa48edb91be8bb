"""The share that a process has of an outage lease."""

from gateway.waiting.outage import OutageLeases


def test_fault_40_who_was_alive_lately_still_counts() -> None:
    """After a jump of Redis's clock only those count for a round that have beaten since."""
    leases = OutageLeases()
    assert leases.gateways_alive == 1
    leases.count_gateways(3)
    for _ in range(4):
        leases.count_gateways(1)
        assert leases.gateways_alive == 3
    leases.count_gateways(0)
    assert leases.gateways_alive == 1
