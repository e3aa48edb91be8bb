"""Every Prometheus series of a worker, and the small server that shows them. One worker serves one instance, so all have the same labels."""

from dataclasses import dataclass, field
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from serving.registry import EngineLoad

_PORTS_TRIED: Final = 100
_LABELS: Final = ("instance", "model")


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
            "requests_running": "Requests in the engine.",
            "requests_waiting": "Requests waiting inside the engine.",
            "kv_cache_usage_ratio": "Share of the engine's KV cache in use.",
            "epoch_started_timestamp_seconds": "When the running engine was started; changes with each restart.",
            "engine_start_duration_seconds": "How long the running engine took to answer.",
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

    def serve(self, host: str, port_first: int) -> tuple[WSGIServer, int]:
        """Answer `/metrics` on this address, on the first free port from `port_first` up; returns the server and its port."""
        for port in range(port_first, port_first + _PORTS_TRIED):
            try:
                server, _ = start_http_server(port, addr=host, registry=self.registry)
            except OSError:
                continue
            return server, port
        raise OSError(f"no free port from {port_first} to {port_first + _PORTS_TRIED - 1} for the worker's metrics")
