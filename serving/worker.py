"""The life of one instance: starts the engine, registers it, keeps its entry up to date, restarts it when it
dies, drains it on request.

It decides when the status changes. `engine_process` runs an engine, `engine_watch` watches it, `registration`
publishes it. One start of the engine is an *epoch*: its counters begin at zero, so its entry gets a new epoch
and a new baseline.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from billing.wire.cancellation import end_tasks
from billing.wire.engine_kinds import VLLM
from billing.wire.instance_entry import EngineLoad, FinalCounters, InstanceEntry, InstanceStatus
from billing.wire.tokens import CounterPair
from serving.adapters import AdapterKeeper
from serving.attest import Attester
from serving.backoff import Backoff
from serving.engine_client import EngineClient, EngineUnanswering
from serving.engine_metrics import EngineReading
from serving.engine_process import EngineProcess, EngineStartFailed
from serving.engine_watch import WatchLimits, until_idle, watch
from serving.expected_weights import what_differs
from serving.metrics import WorkerMetrics
from serving.private_user import PrivateUser
from serving.reclaim_watch import ReclaimWatch
from serving.registration import RENEW_S, Registration
from serving.registry import FINAL_LEASE_MS, LEASE_MS, remove_engine
from serving.restart_watch import RestartOrder, RestartWatch
from serving.running_engine import Weights
from serving.served_model import ServedModel
from serving.vllm_command import AdapterSlots, EngineCommand

EARLIER_EPOCHS_MOST: Final = 8
# vLLM needs a moment after its own --shutdown-timeout to end its children.
_STOP_SLACK_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTimes:
    """All in seconds. `notice_s`: how long gateways may take to see that an instance is draining."""

    start_timeout_s: float
    drain_s: float
    engine_shutdown_timeout_s: float
    notice_s: float = 1.5
    renew_s: float = RENEW_S
    lease_ms: int = LEASE_MS
    watch: WatchLimits = field(default_factory=WatchLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """Everything a worker has decided before it starts. `private`: the user of a private model's engine.
    `expected_weights`: SHA-256 of each of its model's files; None: it runs whatever is there.
    """

    instance: str
    model: ServedModel
    url: str
    key: str = field(repr=False)
    command: EngineCommand
    model_path: Path
    adapters: AdapterSlots
    cache_socket: Path | None
    log_path: Path
    times: WorkerTimes
    private: PrivateUser | None = None
    expected_weights: Mapping[str, str] | None = None


class Worker:
    """One worker's loop. `note` gets a line for people at each change; never anything about a request."""

    def __init__(
        self,
        plan: WorkerPlan,
        redis: Redis,
        metrics: WorkerMetrics,
        note: Callable[[str], None],
        previous: InstanceEntry | None = None,
    ) -> None:
        self._plan = plan
        self._metrics = metrics
        self._note = note
        self._stop_asked = asyncio.Event()
        self._stop_at_once = asyncio.Event()
        self._restart: RestartOrder | None = None
        self._last: EngineReading | None = None
        self._redis = redis
        self._weights = Weights(plan.model_path)
        self._attester = Attester(
            redis=redis, instance=plan.instance, weights=self._weights, private=plan.private, note=note
        )
        entry = InstanceEntry(
            instance=plan.instance,
            model=plan.model.name,
            pool=plan.model.pool,
            cell=plan.model.cell,
            url=plan.url,
            key=plan.key,
            epoch="",
            status=InstanceStatus.DOWN,
            # vLLM has no abort by id where it pools: a request ends with its connection.
            abort=plan.model.generates,
            cache_events=plan.cache_socket is not None,
            priority=True,
            engine=VLLM,
            engine_model=plan.model.engine_model,
            routes=plan.model.engine_routes,
            own_user=None if plan.private is None else plan.private.own,
            earlier=() if previous is None else _ended_epochs(previous),
        )
        self._registration = Registration(
            redis, entry, metrics, note, plan.times.renew_s, lease_ms=plan.times.lease_ms
        )
        self._adapters = AdapterKeeper(
            redis,
            self._registration,
            plan.model_path,
            plan.adapters,
            poll_s=plan.times.renew_s,
            notice_s=plan.times.notice_s,
            note=note,
        )
        self._reclaim_watch = ReclaimWatch(redis, plan.instance, plan.times.renew_s, note)
        self._restart_watch = RestartWatch(redis, plan.instance, plan.times.renew_s)

    @property
    def last_counters(self) -> CounterPair | None:
        """The running engine's counters as last read; None before it answers."""
        return None if self._last is None else self._last.counters

    def request_stop(self) -> None:
        """Drain and end. If it is called again, end without waiting for requests in flight."""
        if self._stop_asked.is_set() and self._restart is None:
            self._stop_at_once.set()
        self._restart = None
        self._stop_asked.set()

    async def run(self, *, must_start: bool = True) -> bool:
        """Runs until `request_stop`, or until the operator orders a restart; returns whether it did. Whoever
        started the worker then plans the instance anew. EngineStartFailed if the very first start fails,
        unless not `must_start`: nothing depends on this instance yet, and whoever started the worker should
        see why. Later starts are retried for ever.
        """
        following = asyncio.create_task(self._reclaim_watch.follow())
        try:
            await self._reclaim_watch.read_order()
            await self._stay_away()
            if not self._stop_asked.is_set():
                await self._keep_serving(must_start=must_start)
        finally:
            await end_tasks(following)
        return self._restart is not None

    async def _keep_serving(self, *, must_start: bool) -> None:
        backoff = Backoff()
        await self._begin_epoch()
        renewing = asyncio.create_task(self._registration.renew_forever())
        try:
            healthy_s = await self._live_one_epoch() if must_start else await self._try_one_epoch()
            while not self._stop_asked.is_set():
                if not await self._stay_away():
                    wait_s = backoff.after(healthy_s)
                    self._note(f"starting the engine again in {wait_s:.0f} s")
                    await _set_within(self._stop_asked, wait_s)
                if self._stop_asked.is_set():
                    return
                self._metrics.engine_restarts.inc()
                await self._begin_epoch()
                healthy_s = await self._try_one_epoch()
        finally:
            await end_tasks(renewing)
            await self._leave()

    async def _stay_away(self) -> bool:
        """Wait while a reclaim has the machine. Returns whether one had it."""
        if not self._reclaim_watch.taken.is_set():
            return False
        self._note("no engine runs here until the machine is given back")
        free, stopping = (
            asyncio.create_task(event.wait()) for event in (self._reclaim_watch.free, self._stop_asked)
        )
        try:
            await asyncio.wait({free, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(free, stopping)
        return True

    async def _until_machine_is_due(self) -> None:
        """Drain while a reclaim has the machine, and be ready again if it is given back in time. Returns when
        it must be given up.
        """
        while True:
            await self._reclaim_watch.taken.wait()
            await self._registration.publish(
                replace(self._registration.entry, status=InstanceStatus.DRAINING)
            )
            await self._reclaim_watch.until_due()
            if self._reclaim_watch.order is not None:
                return
            await self._registration.publish(replace(self._registration.entry, status=InstanceStatus.READY))

    async def _begin_epoch(self) -> None:
        entry = self._registration.entry
        self._last = None
        self._metrics.epoch_started.set(time.time())
        await self._registration.publish(
            replace(
                entry,
                epoch=_new_epoch(),
                status=InstanceStatus.STARTING,
                load=EngineLoad(),
                baseline=CounterPair(),
                counts=False,
                adapters={},
                refused_adapters={},
                final=None,
                earlier=_ended_epochs(entry),
            )
        )

    async def _try_one_epoch(self) -> float:
        """As `_live_one_epoch`; 0 if the engine does not start."""
        try:
            return await self._live_one_epoch()
        except EngineStartFailed as exc:
            await self._show_down()
            self._metrics.engine_start_failures.inc()
            self._note(str(exc))
            return 0.0

    async def _live_one_epoch(self) -> float:
        """Start the engine and run it to its end. Returns for how long it was healthy; a requested stop has
        been carried out by then. Raises EngineStartFailed.
        """
        times = self._plan.times
        await self._check_weights()
        started = time.monotonic()
        engine = await EngineProcess.start(self._plan.command, self._plan.log_path)
        self._note(f"engine starting, its log is {self._plan.log_path}")
        # Before it has come up it gets a short time to clear away its shared memory; one that hangs gets
        # none.
        grace_s = _STOP_SLACK_S / 2
        try:
            async with EngineClient(self._plan.url, self._plan.key, times.watch.answer_timeout_s) as client:
                baseline = await self._unless_called_off(
                    engine.wait_until_answering(client, self._plan.model, times.start_timeout_s, self._note)
                )
                if baseline is None:
                    await self._show_down()
                    return 0.0
                ready = time.monotonic()
                self._metrics.engine_start_duration.set(ready - started)
                await self._show_ready(baseline, ready - started, counts=await self._counts_requests(client))
                assert engine.group is not None
                beside = [
                    asyncio.create_task(
                        self._attester.attest(self._registration.entry.epoch, engine.group, client)
                    )
                ]
                if self._plan.model.generates:
                    beside.append(asyncio.create_task(self._adapters.follow(client)))
                if self._plan.cache_socket is not None:
                    beside.append(asyncio.create_task(self._tell_losses(self._plan.cache_socket)))
                try:
                    why = await self._serve(engine, client)
                finally:
                    await end_tasks(*beside)
                if why is None:
                    await self._drain(client)
                    grace_s = (
                        0.0
                        if self._stop_at_once.is_set()
                        else times.engine_shutdown_timeout_s + _STOP_SLACK_S
                    )
                else:
                    grace_s = 0.0
                    await self._show_down()
                    self._note(f"the engine {why}")
                return time.monotonic() - ready
        finally:
            self._metrics.engine_up.set(0)
            await engine.stop(grace_s)

    async def _check_weights(self) -> None:
        """Raises EngineStartFailed if the model's files are not those that were expected."""
        expected = self._plan.expected_weights
        if expected is None:
            return
        try:
            wrong = what_differs(expected, await asyncio.to_thread(self._weights.digests))
        except OSError as exc:
            wrong = str(exc)
        if wrong is not None:
            raise EngineStartFailed(
                f"The files in {self._plan.model_path} are not those of --weights-sha256: {wrong}. Nothing "
                "was started."
            )

    async def _serve(self, engine: EngineProcess, client: EngineClient) -> str | None:
        """Runs until the engine fails, and returns why; or until a stop is requested, a restart is ordered or
        a reclaim needs the machine, and returns None.
        """
        watching = asyncio.create_task(watch(client, self._plan.times.watch, self._take_reading))
        stopping = asyncio.create_task(self._stop_asked.wait())
        due = asyncio.create_task(self._until_machine_is_due())
        restart = asyncio.create_task(self._restart_watch.ordered(self._registration.entry.epoch))
        fenced = asyncio.create_task(self._registration.fenced.wait())
        ends = {watching, stopping, due, restart, fenced, engine.exited}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if fenced.done():
                self._note("this instance was replaced while its lease had run out: its engine is stopped")
                self._stop_asked.set()
                self._stop_at_once.set()
            if restart.done() and not self._stop_asked.is_set():
                self._restart = restart.result()
                self._stop_asked.set()
            if engine.exited.done():
                return f"ended with status {engine.exited.result()}: {engine.died_because()}"
            return watching.result() if watching.done() else None
        finally:
            await end_tasks(watching, stopping, due, restart, fenced)

    async def _tell_losses(self, socket: Path) -> None:
        # here, because it needs a library that nothing else does
        from serving.cache_events import CacheEvents

        events = CacheEvents(self._redis, self._plan.instance, socket, self._note)
        await events.follow(self._registration.entry.epoch)

    async def _drain(self, client: EngineClient) -> None:
        """Take no new requests, let the running ones end, and leave the last counters for the audit."""
        times = self._plan.times
        self._note("draining: no new requests, waiting for those in flight")
        self._metrics.draining.set(1)
        await self._registration.publish(replace(self._registration.entry, status=InstanceStatus.DRAINING))
        idle = False
        waiting = asyncio.create_task(
            until_idle(
                client,
                times.notice_s,
                times.drain_s if self._restart is None else self._restart.drain_s,
                self._take_reading,
                unanswered_most=times.watch.unanswered_most,
            )
        )
        at_once = asyncio.create_task(self._stop_at_once.wait())
        try:
            await asyncio.wait({waiting, at_once}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                idle = waiting.result()
        except EngineUnanswering as exc:
            self._note(f"the engine does not answer any more while draining: {exc}")
        finally:
            await end_tasks(waiting, at_once)
        if not idle:
            self._note("requests were still in flight: they are cut off")
        await self._show_down(exact=idle)

    async def _counts_requests(self, client: EngineClient) -> bool:
        """Whether this engine reports what each request has produced. Without that, the cost of a late
        failure is only bounded.
        """
        with contextlib.suppress(EngineUnanswering):
            if await client.counts_requests():
                return True
        self._note(
            "this engine does not tell what each request has produced (taas_request_counts did not load)"
        )
        return False

    async def _show_ready(self, baseline: CounterPair, took_s: float, *, counts: bool) -> None:
        self._last = EngineReading(EngineLoad(), baseline)
        self._metrics.engine_up.set(1)
        self._metrics.draining.set(0)
        entry = replace(
            self._registration.entry, status=InstanceStatus.READY, baseline=baseline, counts=counts
        )
        await self._registration.publish(entry)
        self._note(
            f"ready after {took_s:.0f} s: {self._plan.instance} serves {self._plan.model.name} on "
            f"{self._plan.url}"
        )

    async def _show_down(self, *, exact: bool = False) -> None:
        entry = self._registration.entry
        final = (
            None
            if self._last is None
            else FinalCounters(entry.epoch, self._last.counters, entry.baseline, exact)
        )
        self._metrics.engine_up.set(0)
        self._metrics.show_load(EngineLoad())
        # When it is over, nobody renews: the lease must reach to where the audit has read it.
        lease_ms = FINAL_LEASE_MS if self._stop_asked.is_set() else None
        await self._registration.publish(
            replace(entry, status=InstanceStatus.DOWN, load=EngineLoad(), final=final), lease_ms
        )

    async def _leave(self) -> None:
        """Deregister, unless the last counters are still to be read: then stay as `down` until the lease
        lapses.
        """
        with contextlib.suppress(RedisError, OSError):
            await remove_engine(self._redis, self._plan.instance)
        entry = self._registration.entry
        if entry.final is None and not entry.earlier:
            await self._registration.deregister()
        else:
            await self._registration.publish(replace(entry, status=InstanceStatus.DOWN), FINAL_LEASE_MS)

    def _take_reading(self, reading: EngineReading) -> None:
        self._last = reading
        self._metrics.show_load(reading.load)
        self._registration.publish_soon(replace(self._registration.entry, load=reading.load))

    async def _unless_called_off(self, coming: Coroutine[Any, Any, CounterPair]) -> CounterPair | None:
        """The result, or None if a stop is requested first, or a reclaim takes the machine: nothing depends
        on this start yet.
        """
        task = asyncio.create_task(coming)
        calls = [asyncio.create_task(event.wait()) for event in (self._stop_asked, self._reclaim_watch.taken)]
        try:
            await asyncio.wait({task, *calls}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            await end_tasks(task, *calls)


def _ended_epochs(entry: InstanceEntry) -> tuple[FinalCounters, ...]:
    """The ended epochs that an entry knows of, newest first."""
    ended = entry.earlier if entry.final is None else (entry.final, *entry.earlier)
    return ended[:EARLIER_EPOCHS_MOST]


def _new_epoch() -> str:
    """For people its start in ms; unique even where a clock was set back."""
    return f"{time.time_ns() // 1_000_000}-{secrets.token_hex(3)}"


async def _set_within(event: asyncio.Event, wait_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), wait_s)
    return event.is_set()
