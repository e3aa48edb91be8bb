"""Every Prometheus series of a worker, except those that each metrics page has. One worker serves one
instance, so all have the same labels.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from billing.wire.instance_entry import EngineLoad

# Not `instance`: that is what Prometheus calls the address that it scrapes.
_LABELS: Final = ("engine", "model")


@dataclass(frozen=True, slots=True)
class WorkerMetrics:
    """Series of one worker, in a registry of their own."""

    instance: str
    model: str
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _series: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        gauges = {
            "engine_up": "1 while the engine answers and takes requests.",
            "draining": "1 from SIGTERM until the engine is stopped.",
            "redis_up": "1 while the last renewal of the instance's lease reached Redis.",
            "requests_running": "Requests that run in the engine.",
            "requests_waiting": "Requests that wait inside the engine.",
            "kv_cache_usage_ratio": "Part of the engine's KV cache that is in use, from 0 to 1.",
            "epoch_started_timestamp_seconds": "Moment at which the running engine was started.",
            "engine_start_duration_seconds": "Time that the running engine took from its start until it "
            "answered.",
        }
        for name, text in gauges.items():
            gauge = Gauge(f"taas_worker_{name}", text, _LABELS, registry=self.registry)
            self._series[name] = gauge.labels(self.instance, self.model)
        for name, text in {
            "engine_restarts": "Starts of the engine after it had died or stopped answering.",
            "engine_start_failures": "Starts of the engine that did not come up.",
        }.items():
            self._series[name] = Counter(f"taas_worker_{name}", text, _LABELS, registry=self.registry).labels(
                self.instance, self.model
            )

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._series[name].set(value)

    def count(self, name: str) -> None:
        """One more of a counter."""
        self._series[name].inc()

    def show_load(self, load: EngineLoad) -> None:
        """The engine's load as just read."""
        self.set("requests_running", load.running)
        self.set("requests_waiting", load.waiting)
        self.set("kv_cache_usage_ratio", load.kv_usage)
