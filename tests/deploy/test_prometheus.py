"""The scrape configuration knows every port on which a process shows its figures."""

import re

from billing.settings import BillingSettings
from gateway.settings import GatewaySettings
from serving.settings import WorkerSettings
from tests.source_tree import text_of


def test_every_default_metrics_port_is_scraped() -> None:
    targets = set(re.findall(r'"127\.0\.0\.1:(\d+)"', text_of("deploy/prometheus/prometheus.yml")))
    fields = (
        (GatewaySettings, "metrics_port"), (BillingSettings, "metrics_port"),
        (WorkerSettings, "worker_metrics_port_first"), (WorkerSettings, "engine_port_first"),
    )  # fmt: skip
    wanted = {str(settings.model_fields[name].default) for settings, name in fields}
    assert wanted <= targets
