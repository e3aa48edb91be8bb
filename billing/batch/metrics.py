"""What a batch process tells Prometheus."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

RESULTS: Final = ("succeeded", "failed", "given_back", "lost", "overtaken")


class BatchMetrics:
    """One registry. `lines`: attempts by what came of them. `succeeded` and `failed` are results,
    `given_back` is tried again later, `lost` may have been answered and is repeated, `overtaken` is a result
    that came after another process had taken the line over.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        lines = Counter(
            "taas_batch_attempts_total",
            "Attempts to serve a line of a batch, by what came of them.",
            ["result"],
            registry=self.registry,
        )
        self.lines = {result: lines.labels(result) for result in RESULTS}
        self.under_way = Gauge(
            "taas_batch_lines_under_way", "Lines that this process has sent.", registry=self.registry
        )
        self.open = Gauge(
            "taas_batch_open",
            "Batches that have not ended, by status; of one process at a time.",
            ["status"],
            registry=self.registry,
        )
        self.stored = Counter(
            "taas_batch_stored_bytes_total", "Bytes of files that were uploaded.", registry=self.registry
        )
        self.failures = Counter(
            "taas_batch_step_failures_total",
            "Steps of the runner that failed, mostly because a store was away; they are repeated.",
            registry=self.registry,
        )
