"""The page of metrics that each gateway, billing and batch process and worker has, on a private address, and
its place in the list of scrape targets.

Owns what every such page says: the version that runs, and how far this machine's clock is from Redis's. The
rest is its registry's.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterable
from importlib import metadata
from typing import Final
from wsgiref.simple_server import WSGIServer

import redis
from prometheus_client import CollectorRegistry, Gauge, disable_created_metrics, start_http_server
from redis.backoff import NoBackoff
from redis.retry import Retry

from billing.wire import redis_clock
from billing.wire.redis_address import RedisAddress
from billing.wire.scrape_targets import RENEW_S, ScrapeTarget, address_of, renew, withdraw

_log = logging.getLogger(__name__)

# Shorter than the lease: a Redis that hangs must not prevent the next renewal.
_REDIS_TIMEOUT_S: Final = 1.5


class MetricsPage:
    """`/metrics`, served by a thread of its own, and listed as a scrape target while the `with` block runs.
    It listens on the first of `ports` that is free; 0 is any. Raises OSError if none is.
    """

    def __init__(
        self,
        job: str,
        registry: CollectorRegistry,
        *,
        host: str,
        ports: Iterable[int],
        redis_address: RedisAddress,
    ) -> None:
        self._job = job
        self._host = host
        self._redis_address = redis_address
        # These would be one more series for each counter and histogram, which nothing reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        build = Gauge(
            "taas_build_info",
            "The version of this process; the value is always 1.",
            ["version"],
            registry=registry,
        )
        build.labels(version()).set(1)
        self._clock_ahead = Gauge(
            "taas_clock_ahead_of_redis_seconds",
            "How far this machine's clock is ahead of Redis's, as last seen; below 0 where it is behind.",
            registry=registry,
        )
        self._clock_ahead.set(float("nan"))
        self._server, self._serving = _serve(registry, host, ports)
        self.port: int = self._server.server_port
        self._ended = threading.Event()
        self._listing = threading.Thread(target=self._keep_listed, name="scrape-target", daemon=True)

    def __enter__(self) -> "MetricsPage":
        self._listing.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        # Longer than a last call to Redis may take.
        self._listing.join(3 * _REDIS_TIMEOUT_S)
        self._server.shutdown()
        self._server.server_close()
        self._serving.join()

    def _keep_listed(self) -> None:
        client = redis.Redis(
            **self._redis_address.client_arguments(), socket_timeout=_REDIS_TIMEOUT_S,
            socket_connect_timeout=_REDIS_TIMEOUT_S, retry=Retry(NoBackoff(), 1),
        )  # fmt: skip
        target: ScrapeTarget | None = None
        while not self._ended.is_set():
            try:
                target = target or ScrapeTarget(
                    self._job, address_of(self._host, self.port, self._redis_address)
                )
                renew(client, target, self._read_clock(client))
            except (redis.RedisError, OSError) as exc:
                # Other code logs that Redis is away. The next try renews the entry.
                _log.debug("not listed as a scrape target: %s", type(exc).__name__)
            self._ended.wait(RENEW_S)
        with contextlib.suppress(redis.RedisError, OSError):
            if target is not None:
                withdraw(client, target)
            client.close()

    def _read_clock(self, client: redis.Redis) -> int:
        """Redis's clock in ms. This machine's is compared with it as of the middle of the call."""
        asked_s, began_s = time.time(), time.monotonic()
        redis_ms = redis_clock.now_ms(client)
        took_s = time.monotonic() - began_s
        self._clock_ahead.set(asked_s + took_s / 2 - redis_ms / 1000)
        return redis_ms


def version() -> str:
    """The product's version, as it was installed."""
    try:
        return metadata.version("taas")
    except metadata.PackageNotFoundError:
        return "unknown"


def _serve(
    registry: CollectorRegistry, host: str, ports: Iterable[int]
) -> tuple[WSGIServer, threading.Thread]:
    refused: OSError | None = None
    for port in ports:
        try:
            return start_http_server(port, host, registry)
        except OSError as exc:
            refused = exc
    raise refused or OSError("no port was given for the metrics")
