"""Every Prometheus series of a worker, except those that each metrics page has. One worker serves one
instance, so all have the same labels.
"""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from billing.wire.instance_entry import EngineLoad

# Not `instance`: that is what Prometheus calls the address that it scrapes.
_LABELS: Final = ("engine", "model")


class WorkerMetrics:
    """Series of one worker, in a registry of their own."""

    def __init__(self, instance: str, model: str) -> None:
        self.registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, _LABELS, registry=self.registry).labels(instance, model)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, _LABELS, registry=self.registry).labels(instance, model)

        self.engine_up = gauge("taas_worker_engine_up", "1 while the engine answers and takes requests.")
        self.draining = gauge("taas_worker_draining", "1 from SIGTERM until the engine is stopped.")
        self.redis_up = gauge(
            "taas_worker_redis_up", "1 while the last renewal of the instance's lease reached Redis."
        )
        self._running = gauge("taas_worker_requests_running", "Requests that run in the engine.")
        self._waiting = gauge("taas_worker_requests_waiting", "Requests that wait inside the engine.")
        self._kv_cache_usage = gauge(
            "taas_worker_kv_cache_usage_ratio", "Part of the engine's KV cache that is in use, from 0 to 1."
        )
        self.epoch_started = gauge(
            "taas_worker_epoch_started_timestamp_seconds", "Moment at which the running engine was started."
        )
        self.engine_start_duration = gauge(
            "taas_worker_engine_start_duration_seconds",
            "Time that the running engine took from its start until it answered.",
        )
        self.engine_restarts = counter(
            "taas_worker_engine_restarts", "Starts of the engine after it had died or stopped answering."
        )
        self.engine_start_failures = counter(
            "taas_worker_engine_start_failures", "Starts of the engine that did not come up."
        )

    def show_load(self, load: EngineLoad) -> None:
        """The engine's load as just read."""
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        self._kv_cache_usage.set(load.kv_usage)
