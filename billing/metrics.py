"""The metrics of the billing process. It owns metric names and labels; it measures nothing itself.

Label values come from catalogues only: cells, models, tenants, engines, enums. Kinds of tokens do not
overlap: `input`, `cached_input` and `output`. If it is unknown which part of a prompt came from the cache
(absorbed tokens, an engine's counters), all of it is `prompt`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

from billing.findings import FindingKind
from billing.metrics_capacity import CapacityMetrics
from billing.metrics_shared import InventoryMetrics, SharedFigures

if TYPE_CHECKING:
    from billing.audit.report import AuditReport
    from billing.ledger.entries import RecordedEvent
    from billing.usage.streams import StreamLag


class BillingMetrics:
    """All of them, in one registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._audited: set[str] = set()
        self._read: set[str] = set()
        self._lagging: set[str] = set()
        self._make_counters()
        self.degraded = Gauge(
            "taas_degraded",
            "1 while this component of the billing process does not do its work.",
            ["component"],
            registry=self.registry,
        )
        self.capacity = CapacityMetrics(self.registry)
        self.shared = SharedFigures()
        self.inventory = InventoryMetrics()
        self.lag_entries = self.shared.gauge(
            "taas_usage_stream_lag_entries", "Usage events that are not in the ledger yet.", "cell"
        )
        self.lag_seconds = self.shared.gauge(
            "taas_usage_stream_lag_seconds",
            "Age of the oldest usage event that is not in the ledger yet.",
            "cell",
        )
        self.residual = self.shared.gauge(
            "taas_audit_residual_tokens",
            "Tokens that an engine counted beyond what is billed, absorbed and open, at the last audit.",
            "engine",
            "kind",
        )
        self._desired = self.shared.gauge(
            "taas_pool_desired_instances",
            "Instances that a scaled pool should have now, by its contracts and load.",
            "pool",
        )
        self.read_at = self.shared.gauge(
            "taas_audit_read_timestamp_seconds",
            "Moment at which an audit last compared the counters of an engine with what is billed, absorbed "
            "and open.",
            "engine",
        )
        self.findings = self.shared.gauge(
            "taas_audit_findings", "What the last audit found, by kind.", "kind"
        )
        self.finding_rows = self.shared.gauge(
            "taas_findings", "What audits found and is still there, by kind and state.", "kind", "state"
        )
        self.oldest_open = self.shared.gauge(
            "taas_oldest_open_request_seconds", "Age of the oldest request that runs, at the last audit."
        )
        self.oldest_undelivered = self.shared.gauge(
            "taas_export_oldest_undelivered_seconds",
            "Age of the oldest recorded request that a sink has not taken; 0 where there is none.",
            "sink",
        )
        self.oldest_day = self.shared.gauge(
            "taas_usage_oldest_day_seconds",
            "When the oldest day began whose usage events are there, as Unix time.",
        )
        self.days_overdue = self.shared.gauge(
            "taas_usage_days_overdue", "Days of usage events that are older than is kept and not final."
        )
        self.shared.registry.register(self.inventory)
        self.registry.register(self.shared)

    def _make_counters(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        self.events = counter(
            "taas_usage_events",
            "Requests whose usage is in the ledger, by how they ended and were priced.",
            "model",
            "ending",
            "pricing",
        )
        self.tokens = counter(
            "taas_billed_tokens",
            "Tokens in the ledger that a tenant is billed for; each token is of one kind.",
            "tenant",
            "model",
            "kind",
        )
        self.absorbed = counter(
            "taas_absorbed_tokens",
            "Tokens in the ledger that nobody is billed for, by the reason; each token is of one kind.",
            "model",
            "reason",
            "kind",
        )
        self.unpriced = counter(
            "taas_unpriced_tokens",
            "Billed tokens that have no amount, because no price held when their request started.",
            "model",
            "kind",
        )
        self.usage_rejected = counter(
            "taas_usage_rejected", "Entries of usage streams that could not be read and were set aside."
        )
        self.usage_conflicts = counter(
            "taas_usage_conflict",
            "Requests with a second usage event that differs from the first, which counts.",
        )
        self.usage_duplicates = counter(
            "taas_usage_duplicates", "Usage events that were delivered more than once and counted once."
        )
        self.reaped = counter(
            "taas_reaped_requests",
            "Orphans: requests that were settled at their last checkpoint because their lease had lapsed.",
            "cell",
        )

    def scaled(self, desired: Mapping[str, int]) -> None:
        """The instances that each scaled pool should have; others have no series."""
        self._desired.clear()
        for pool, instances in desired.items():
            self._desired.labels(pool).set(instances)

    def recorded(self, item: "RecordedEvent") -> None:
        """Count one event that is in the ledger."""
        event = item.event
        self.events.labels(event.model, event.ending.value, item.pricing.value).inc()
        billed = {
            "input": event.billed.prompt - event.billed.cached,
            "cached_input": event.billed.cached,
            "output": event.billed.output,
        }
        for kind, tokens in billed.items():
            if tokens:
                self.tokens.labels(event.tenant, event.model, kind).inc(tokens)
                if item.pricing.value == "unpriced":
                    self.unpriced.labels(event.model, kind).inc(tokens)
        for reason, part in event.absorbed.reasons.items():
            for kind, tokens in (("prompt", part.prompt), ("output", part.output)):
                if tokens:
                    self.absorbed.labels(event.model, str(reason), kind).inc(tokens)

    def audited(self, report: "AuditReport") -> None:
        """Publish an audit; instances that are not in it lose their series."""
        for finding in FindingKind:
            self.findings.labels(finding.value).set(sum(each.kind is finding for each in report.findings))
        self.finding_rows.clear()
        for (kind, state), count in report.rows.items():
            self.finding_rows.labels(kind, state).set(count)
        self.oldest_open.set(report.oldest_open_ms / 1000)
        instances = {each.instance for each in report.instances}
        for gone in self._audited - instances:
            self.residual.remove(gone, "prompt")
            self.residual.remove(gone, "output")
        self._audited = instances
        for gone in self._read - report.read_ms.keys():
            self.read_at.remove(gone)
        self._read &= report.read_ms.keys()
        for instance, read_ms in report.read_ms.items():
            if read_ms is not None:
                self.read_at.labels(instance).set(read_ms / 1000)
                self._read.add(instance)
        for each in report.instances:
            self.residual.labels(each.instance, "prompt").set(each.residual.prompt)
            self.residual.labels(each.instance, "output").set(each.residual.generation)

    def stream_lags(self, lags: Mapping[str, "StreamLag"]) -> None:
        """Publish what the streams of the busy cells hold. Other cells lose their series."""
        for gone in self._lagging - lags.keys():
            self.lag_entries.remove(gone)
            self.lag_seconds.remove(gone)
        self._lagging = set(lags)
        for cell, lag in lags.items():
            self.lag_entries.labels(cell).set(lag.entries)
            self.lag_seconds.labels(cell).set(lag.oldest_age_ms / 1000)
