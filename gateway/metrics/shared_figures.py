"""The figures of a gateway that runs as several processes: each writes snapshots into a pipe to its parent,
which adds them up. Counts nothing.

Nothing of it is on disk, so that no two gateways can come to share it, however alike their settings are.
"""

import json
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.metrics.counts import Metrics
from gateway.metrics.snapshot import Snapshot, add_up, families

log = logging.getLogger(__name__)

# A process that is killed loses the figures of at most this long. The ledger is exact, metrics need not be.
SNAPSHOT_INTERVAL_S = 1.0
# A process that ends does not wait longer for a parent that does not read, nor its parent for the end of the
# pipe.
_LAST_SNAPSHOT_S = 2.0


class SnapshotWriter:
    """Writes a process's figures into its pipe: from `start` on once a second, from a thread of its own,
    and at the end. Use as a context.
    """

    def __init__(self, metrics: Metrics, pipe: int) -> None:
        self._metrics = metrics
        self._pipe = pipe
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="metrics", daemon=True)

    def start(self) -> None:
        """The process serves from now on."""
        self._thread.start()

    def __enter__(self) -> "SnapshotWriter":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join(_LAST_SNAPSHOT_S)

    def _write_on(self) -> None:
        try:
            while True:
                last = self._ended.is_set()
                self._write()
                if last:
                    return
                self._ended.wait(SNAPSHOT_INTERVAL_S)
        except OSError as exc:  # the parent has gone, and this process is told so elsewhere
            log.warning("cannot write metrics", extra={"reason": exc.strerror})

    def _write(self) -> None:
        """One snapshot, one line."""
        line = memoryview(json.dumps(self._metrics.snapshot(), separators=(",", ":")).encode() + b"\n")
        while line:
            line = line[os.write(self._pipe, line) :]


@dataclass(slots=True, eq=False)
class _Process:
    """What a process has written last: a whole line, or nothing yet."""

    reader: threading.Thread
    last: bytes = b""

    def snapshot(self) -> Snapshot:
        if not self.last:
            return {}
        read: Snapshot = json.loads(self.last)
        return read


class SharedFigures(Collector):
    """The figures of all processes of one gateway, by the names that their parent gives them."""

    def __init__(self) -> None:
        self._schema = Metrics().schema()
        self._lock = threading.Lock()
        self._living: dict[str, _Process] = {}
        self._ended: Snapshot = {}
        self.deaths = 0

    def begun(self, name: str) -> int:
        """A process begins: the end of the pipe that it is to have. The caller closes its own copy of it."""
        ours, its = os.pipe()
        reader = threading.Thread(
            target=self._read_on, args=(name, ours), name=f"metrics-{name}", daemon=True
        )
        with self._lock:
            self._living[name] = _Process(reader)
        reader.start()
        return its

    def has_figures(self, name: str) -> bool:
        """Whether it has come so far as to serve."""
        return bool(self._living[name].last)

    def ended(self, name: str) -> None:
        """It has ended: what it counted stays in the sums, its gauges go."""
        process = self._living[name]
        process.reader.join(_LAST_SNAPSHOT_S)
        with self._lock:
            del self._living[name]
            self._ended = add_up(self._schema, [], [self._ended, process.snapshot()])

    def collect(self) -> Iterator[Metric]:
        """For a prometheus_client registry."""
        with self._lock:
            living = [process.snapshot() for process in self._living.values()]
            total = add_up(self._schema, living, [self._ended])
        yield from families(self._schema, total)
        alive = sum(1 for snapshot in living if snapshot)
        yield GaugeMetricFamily("taas_gateway_processes", "Processes of this gateway that serve now.", alive)
        yield CounterMetricFamily(
            "taas_gateway_process_deaths",
            "Processes of this gateway that ended although nobody asked them to.",
            self.deaths,
        )

    def _read_on(self, name: str, pipe: int) -> None:
        """Until the process has ended. What it had not written to the end of a line is no snapshot."""
        process = self._living[name]
        with os.fdopen(pipe, "rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    process.last = line
