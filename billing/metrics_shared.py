"""Metrics that all billing processes see alike. Only one of them exports these, so that a sum over all
processes is right. It measures nothing itself.

Each process keeps these figures; the leader exports them. When it dies, another one leads within seconds.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from billing.inventory import Inventory


class SharedFigures(Collector):
    """The figures of a registry of its own, exported while this process leads; otherwise their families are
    empty.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._leads: Callable[[], bool] = lambda: True

    def report_while(self, leads: Callable[[], bool]) -> None:
        """From now on this function says whether this process exports them. A process alone always does."""
        self._leads = leads

    def leads(self) -> bool:
        """Whether this process exports them now."""
        return self._leads()

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """A gauge among them."""
        return Gauge(name, text, labels, registry=self.registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry of the page."""
        leads = self._leads()
        for family in self.registry.collect():
            if not leads:
                family.samples = []
            yield family


class InventoryMetrics(Collector):
    """The inventory as it was read last."""

    def __init__(self) -> None:
        self._seen = Inventory({}, {}, (), ())

    def show(self, seen: Inventory) -> None:
        """From now on this."""
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        """For a prometheus_client registry."""
        seen = self._seen
        engines = GaugeMetricFamily(
            "taas_instances",
            "Instances of a model by status; an instance whose worker was lost is down, for a day.",
            labels=["pool", "model", "status"],
        )
        for labels, count in seen.engines.items():
            engines.add_metric(labels, count)
        yield engines
        declared = GaugeMetricFamily(
            "taas_pool_declared_instances", "Instances that a pool was set to have.", labels=["pool"]
        )
        for pool, instances in seen.declared.items():
            declared.add_metric([pool], instances)
        yield declared
        tenants = GaugeMetricFamily(
            "taas_tenant_info", "The name of a tenant; the value is always 1.", labels=["tenant", "name"]
        )
        for tenant_id, name in seen.tenants:
            tenants.add_metric([tenant_id, name], 1)
        yield tenants
        yield from self._contracts(seen)

    def _contracts(self, seen: Inventory) -> Iterator[Metric]:
        ids = ["tenant", "pool", "contract"]
        info = GaugeMetricFamily(
            "taas_contract_info",
            "A contract that is signed and has not ended; the value is always 1.",
            labels=[*ids, "tenant_name", "state", "overflow"],
        )
        ends = GaugeMetricFamily(
            "taas_contract_end_timestamp_seconds",
            "Moment at which a contract ends, by term or by notice.",
            labels=ids,
        )
        for each in seen.contracts:
            key = (each.tenant_id, each.pool, each.contract_id)
            info.add_metric((*key, each.tenant_name, each.state, each.overflow), 1)
            ends.add_metric(key, each.ends_ms / 1000)
        yield info
        yield ends
