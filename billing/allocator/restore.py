"""After Redis has lost data: compares the buckets of every cell with the ledger, in one pass for all cells,
and marks them as intact.

The `intact` marker of a cell names the run of the Redis server in which its levels were last compared with
the ledger. Without a marker (Redis was emptied, or started empty) no request is admitted there until this has
been done. With the marker of another run (a restart, an older copy, a failover) levels are raised within a
second. Open requests are not in the ledger: gateways restore them themselves.

One billing process at a time does this. It checks every cell only if the server's marker for all cells is
gone, otherwise only those that are busy or new.
"""

import logging
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
from sqlalchemy import Engine

from billing.allocator.cell_state import room_of
from billing.allocator.rebuild import levels_of
from billing.allocator.supply import RatesInForce, read_calibrations, read_cells, signed_alone
from billing.cell.execute import load
from billing.cell.scripts import Command, rebuild_call
from billing.contracts.rates import ContractRate, rates_by_pool
from billing.fleet.registered import read_registered
from billing.leadership import Leadership
from billing.metrics import BillingMetrics
from billing.usage.busy_cells import BusyCells
from billing.wire import redis_clock, redis_keys
from billing.wire.instance_entry import InstanceStatus

_log = logging.getLogger(__name__)

# How often `step` should be called: half of the time that a caller waits after Redis was emptied.
RESTORE_INTERVAL_MS: Final = 500
# How often it checks busy and new cells, the server's run and its own lock.
_LOOK_S: Final = 0.95
# By then each gateway has checkpointed its running requests, which reserves their slots again.
_RESTORED_MS: Final = 900
# Levels in one script: a few ms of Redis.
_LEVELS_MAX: Final = 1_000
# Commands of one pipeline.
_COMMANDS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class _Server:
    """The state of the Redis server: its run, which changes with every start; its marker for all cells, and
    those of some; its clock; the gateways that listen.
    """

    run: str
    word: bytes | None
    clock_ms: int
    listeners: Sequence[bytes]
    words: Mapping[str, bytes | None]


class Restorer:
    """One per process; the one that holds the lock works. The client must not decode."""

    def __init__(
        self,
        engine: Engine,
        client: redis.Redis,
        metrics: BillingMetrics,
        *,
        owner: str,
        rates_in_force: RatesInForce = signed_alone,
        busy: BusyCells | None = None,
    ) -> None:
        self._engine = engine
        self._client = client
        self._metrics = metrics.capacity
        self._rates_in_force = rates_in_force
        self._busy = busy or BusyCells(client)
        self._leadership = Leadership(client, owner)
        self._whole: set[str] = set()
        self._pause = threading.Event()
        self._again_s = 0.0
        self._word: bytes | None = None
        # Since when a cell is known to have no marker.
        self._since: dict[str, int] = {}

    def step(self, now_ms: int | None = None) -> bool:
        """A loop's step. Between full passes it only checks whether Redis was emptied. Raises
        redis.RedisError, SQLAlchemyError.
        """
        now_s = time.monotonic()
        if (
            now_ms is None
            and now_s < self._again_s
            and self.leads
            and self._client.get(redis_keys.INTACT) == self._word
        ):
            return False
        self._again_s = now_s + _LOOK_S
        if not self._leadership.hold(redis_keys.RESTORER_LOCK):
            self._whole.clear()
            return False
        self.restore_once(now_ms)
        if now_ms is None and self._since:
            # Callers wait, so continue as soon as the gateways have had their time.
            self._pause.wait(_RESTORED_MS / 1000 / 3)
            return True
        return False

    @property
    def leads(self) -> bool:
        """Whether this process is the one that works, which then also exports what all processes see
        alike.
        """
        return self._leadership.holds(redis_keys.RESTORER_LOCK)

    def close(self) -> None:
        """Let another process take over at once. Raises redis.RedisError."""
        self._leadership.release_all()

    def restore_once(self, now_ms: int | None = None) -> list[str]:
        """Restore the cells that need it and can be restored; returns them. The caller holds the lock."""
        busy = self._busy.names()
        looked_at = [*busy, *(set(self._busy.all()) - self._whole - set(busy))]
        server = self._read_server(looked_at[:_COMMANDS_MAX])
        run, word, listeners = server.run, server.word, server.listeners
        self._word = word
        now_ms = server.clock_ms if now_ms is None else now_ms
        words = server.words
        if word != run.encode():
            self._whole.clear()
            with self._engine.connect() as connection:
                looked_at, words = list(read_cells(connection)), {}
        lost = self._lost(run, looked_at, words)
        due = self._due(lost, now_ms, waits=bool(listeners))
        emptied = {cell for cell, word in lost.items() if word is None}
        done = self._restore(due, emptied, now_ms, run) if due else []
        if done:
            # The queue of waiting requests is gone, so they must reserve again.
            for channel in listeners:
                self._client.publish(channel, "*")
            self._metrics.restored.inc(len(done))
            _log.warning(
                "levels were lost in Redis, or a model is new: %d cells were held against the ledger",
                len(done),
            )
        self._whole |= set(done)
        if word != run.encode() and lost.keys() <= set(done):
            self._client.set(redis_keys.INTACT, run)
            self._word = run.encode()
        return done

    def _read_server(self, cells: Sequence[str]) -> _Server:
        """Read all that must be known while nothing is lost, in one call."""
        with self._client.pipeline(transaction=False) as read:
            read.info("server")
            read.get(redis_keys.INTACT)
            read.time()
            read.pubsub_channels(redis_keys.wake_channel("*"))
            for cell in cells:
                read.get(redis_keys.intact(cell))
            server, word, clock, listeners, *words = read.execute()
        found = dict(zip(cells, words, strict=True))
        return _Server(str(server["run_id"]), word, redis_clock.milliseconds(clock), listeners, found)

    def _lost(
        self, run: str, looked_at: Sequence[str], known: Mapping[str, bytes | None]
    ) -> dict[str, bytes | None]:
        """Of these cells, those whose levels were not compared with the ledger in this run of the server,
        with their marker.
        """
        rest = [cell for cell in looked_at if cell not in known]
        asked = zip(
            rest, _run_all(self._client, [("GET", redis_keys.intact(cell)) for cell in rest]), strict=True
        )
        words = {**known, **dict(asked)}
        lost = {cell: words[cell] for cell in looked_at if words[cell] != run.encode()}
        self._whole |= set(looked_at) - lost.keys()
        return lost

    def _due(self, lost: Mapping[str, bytes | None], now_ms: int, *, waits: bool) -> list[str]:
        """The cells to restore now. A cell without a marker waits 0.9 s first, so that running requests
        reserve their slots again before new ones are admitted.
        """
        self._since = {
            cell: self._since.get(cell, now_ms) for cell, word in lost.items() if word is None and waits
        }
        # Also if the clock went back, or it would wait until the clock is there again.
        return [cell for cell in lost if not 0 <= now_ms - self._since.get(cell, 0) < _RESTORED_MS]

    def _restore(self, cells: Sequence[str], emptied: Collection[str], now_ms: int, run: str) -> list[str]:
        with self._engine.connect() as connection:
            pools = read_cells(connection)
            signed = rates_by_pool(connection, now_ms)
            rates = self._rates_in_force(connection, signed, now_ms) if signed else {}
            calibrated = read_calibrations(connection)
            # A cell that waits for the allocator's figures is not intact yet: its contracts would have no
            # levels, and a request that waits for a slot would find no bound.
            bounded = {
                cell: pools[cell].pool for cell in emptied if cell in pools and pools[cell].pool in calibrated
            }
            roomy = self._with_room([cell for cell in cells if cell in pools], bounded, emptied)
            ready = self._numbered({cell: rates.get(pools[cell].pool, ()) for cell in roomy})
            levels = levels_of(connection, ready, now_ms)
        calls: list[Command] = []
        for cell, found in levels.items():
            for start in range(0, max(1, len(found)), _LEVELS_MAX):
                last = start + _LEVELS_MAX >= len(found)
                calls.append(rebuild_call(cell, run if last else "", found[start : start + _LEVELS_MAX]))
        load(self._client)
        _run_all(self._client, calls)
        return list(ready)

    def _with_room(
        self, cells: Sequence[str], emptied: Mapping[str, str], lost: Collection[str]
    ) -> list[str]:
        """Of these cells, those whose ready instances all have their room in Redis, and those whose room was
        not lost. `lost`: the cells that have lost it; `emptied`: of these, the measured pools.
        """
        ready = [each for each in read_registered(self._client) if each.status == InstanceStatus.READY]
        machines = [
            (each.cell, each.instance)
            for each in ready
            if emptied.get(each.cell) == each.pool or (each.max_concurrency is not None and each.cell in lost)
        ]
        there = _run_all(self._client, [room_of(*each) for each in machines])
        missing = {cell for (cell, _), room in zip(machines, there, strict=True) if room is None}
        return [cell for cell in cells if cell not in missing]

    def _numbered(self, rates: Mapping[str, Sequence[ContractRate]]) -> dict[str, Sequence[ContractRate]]:
        """Of these cells, those whose contracts have their figures in Redis."""
        asked = [(cell, rate.tenant) for cell, found in rates.items() for rate in found]
        there = _run_all(self._client, [("EXISTS", redis_keys.contract_bucket(*each)) for each in asked])
        missing = {cell for (cell, _), exists in zip(asked, there, strict=True) if not exists}
        return {cell: found for cell, found in rates.items() if cell not in missing}


def _run_all(client: redis.Redis, commands: Sequence[Command]) -> list[Any]:
    replies: list[Any] = []
    for start in range(0, len(commands), _COMMANDS_MAX):
        with client.pipeline(transaction=False) as pipe:
            for command in commands[start : start + _COMMANDS_MAX]:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            replies += pipe.execute()
    return replies
