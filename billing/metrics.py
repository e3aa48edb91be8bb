"""What the billing process tells Prometheus. Owns metric names and labels; measures nothing itself.

Label values come from catalogues only: cells, models, tenants, instances, enums.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

from billing.findings import FindingKind
from billing.metrics_capacity import CapacityMetrics

if TYPE_CHECKING:
    from billing.audit_report import AuditReport
    from billing.ledger import RecordedEvent
    from billing.usage_stream import StreamLag


class BillingMetrics:
    """All of them, in one registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._audited: set[str] = set()
        self._lagging: set[str] = set()
        registry = self.registry
        self.events = Counter(
            "taas_usage_events", "Usage events recorded", ["model", "ending", "pricing"], registry=registry
        )
        self.tokens = Counter(
            "taas_billed_tokens", "Tokens recorded as billed, by kind", ["tenant", "model", "kind"], registry=registry
        )
        self.absorbed = Counter(
            "taas_absorbed_tokens", "Tokens that nobody is billed for", ["model", "reason", "kind"], registry=registry
        )
        self.unpriced = Counter(
            "taas_unpriced_tokens",
            "Tokens without an amount, for want of a valid price",
            ["model", "kind"],
            registry=registry,
        )
        self.usage_rejected = Counter(
            "taas_usage_rejected", "Entries of a usage stream that are no event", registry=registry
        )
        self.usage_conflicts = Counter(
            "taas_usage_conflict", "Second events of a request that differ from the first", registry=registry
        )
        self.usage_duplicates = Counter("taas_usage_duplicates", "Events delivered more than once", registry=registry)
        self.lag_entries = Gauge("taas_usage_stream_lag_entries", "Events not yet in SQL", ["cell"], registry=registry)
        self.lag_seconds = Gauge(
            "taas_usage_stream_lag_seconds", "Age of the oldest event not yet in SQL", ["cell"], registry=registry
        )
        self.reaped = Counter(
            "taas_reaped_requests", "Requests settled because their lease lapsed", ["cell"], registry=registry
        )
        self.residual = Gauge(
            "taas_audit_residual_tokens",
            "Tokens that an instance's counters have beyond billed, absorbed and open",
            ["instance", "kind"],
            registry=registry,
        )
        self.findings = Gauge("taas_audit_findings", "What the last audit found, by kind", ["kind"], registry=registry)
        self.degraded = Gauge(
            "taas_degraded", "1 while a loop of this process cannot do its work", ["component"], registry=registry
        )
        self.capacity = CapacityMetrics(registry)

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
                    self.absorbed.labels(event.model, reason.value, kind).inc(tokens)

    def audited(self, report: "AuditReport") -> None:
        """Publish an audit; instances that are no longer in it lose their series."""
        for finding in FindingKind:
            self.findings.labels(finding.value).set(sum(each.kind is finding for each in report.findings))
        instances = {each.instance for each in report.instances}
        for gone in self._audited - instances:
            self.residual.remove(gone, "prompt")
            self.residual.remove(gone, "generation")
        self._audited = instances
        for each in report.instances:
            self.residual.labels(each.instance, "prompt").set(each.residual.prompt)
            self.residual.labels(each.instance, "generation").set(each.residual.generation)

    def stream_lags(self, lags: Mapping[str, "StreamLag"]) -> None:
        """Publish what the streams of the busy cells still hold. Other cells lose their series."""
        for gone in self._lagging - lags.keys():
            self.lag_entries.remove(gone)
            self.lag_seconds.remove(gone)
        self._lagging = set(lags)
        for cell, lag in lags.items():
            self.lag_entries.labels(cell).set(lag.entries)
            self.lag_seconds.labels(cell).set(lag.oldest_age_ms / 1000)
