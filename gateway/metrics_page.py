"""Brings the figures to whoever scrapes: one process its own, several through snapshots in files that their parent adds up. Counts nothing."""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.metrics import Metrics
from gateway.metrics_snapshot import Snapshot, add_up, families

log = logging.getLogger(__name__)

# A process that is killed loses the figures of at most this long. The ledger is exact, metrics need not be.
SNAPSHOT_INTERVAL_S = 1.0


class MetricsPage:
    """`/metrics` on a private address, answered by a thread of its own. Use as a context."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self._server, self._thread = start_http_server(port, host, registry)
        self.port: int = self._server.server_port

    def __enter__(self) -> "MetricsPage":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class SnapshotWriter:
    """Writes a process's figures to a file: from `start` on once a second, from a thread of its own, and at the end. Use as a context."""

    def __init__(self, metrics: Metrics, path: Path) -> None:
        self._metrics = metrics
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="metrics", daemon=True)

    def start(self) -> None:
        """The process serves from now on."""
        self.write()
        self._thread.start()

    def __enter__(self) -> "SnapshotWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()
            self.write()

    def write(self) -> None:
        """Replace the file as a whole, so that a reader never sees half of one."""
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(self._metrics.snapshot(), separators=(",", ":")))
            fresh.replace(self._path)
        except OSError as exc:  # a full disk costs figures, not service; the next second tries again
            log.warning("cannot write metrics", extra={"reason": exc.strerror})

    def _write_on(self) -> None:
        while not self._ended.wait(SNAPSHOT_INTERVAL_S):
            self.write()


class SharedFigures(Collector):
    """The figures of all processes of one gateway. `folder` is theirs alone and starts empty; a file is named by its process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._schema = Metrics().schema()
        self._lock = threading.Lock()
        self._living: dict[str, Path] = {}
        self._ended: Snapshot = {}
        self.deaths = 0
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.iterdir():
            left_over.unlink()

    def begun(self, name: str) -> Path:
        """A process has begun: the file in which it is to leave its figures."""
        path = self._folder / f"{name}.json"
        with self._lock:
            self._living[name] = path
        return path

    def has_figures(self, name: str) -> bool:
        """Whether it has come so far as to serve."""
        return self._living[name].exists()

    def ended(self, name: str) -> None:
        """It has ended: what it counted stays in the sums, its gauges go."""
        with self._lock:
            path = self._living.pop(name)
            self._ended = add_up(self._schema, [], [self._ended, _read(path)])
            path.unlink(missing_ok=True)

    def collect(self) -> Iterator[Metric]:
        """For a prometheus_client registry."""
        with self._lock:
            living = [_read(path) for path in self._living.values()]
            total = add_up(self._schema, living, [self._ended])
        yield from families(self._schema, total)
        alive = sum(1 for snapshot in living if snapshot)
        yield GaugeMetricFamily("taas_gateway_processes", "Processes that serve.", alive)
        yield CounterMetricFamily("taas_gateway_process_deaths", "Processes that ended unasked.", self.deaths)


def _read(path: Path) -> Snapshot:
    try:
        snapshot: Snapshot = json.loads(path.read_text())
    except FileNotFoundError:  # it has not come so far
        return {}
    return snapshot
