"""The billing process: which loops run beside the admin API, and in which order they start and stop. It does
no work of its own.
"""

import asyncio
import contextlib
import logging
import secrets
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import redis
import uvicorn
from sqlalchemy import Engine

from billing.allocator.allocator import Allocator
from billing.allocator.restore import RESTORE_INTERVAL_MS, Restorer
from billing.api.app import build_app
from billing.api.signing_key import checking_key, signing_key
from billing.audit import balance_rows
from billing.audit.engine_counters import CounterPoller
from billing.audit.run import Auditor, Facts
from billing.autoscaling.autoscaler import Autoscaler
from billing.catalogue.budgets import begin_periods
from billing.catalogue.projection import KEEP_UP_INTERVAL_MS, Projector
from billing.cell.execute import forget_other_versions
from billing.contracts import store
from billing.contracts.clock import advance
from billing.database import DatabaseError, connect, read_database_url
from billing.due import DueReader
from billing.exports.deliver import Deliverer
from billing.fleet.engine_watch import WATCH_INTERVAL_MS, EngineWatch
from billing.fleet.lapsed_instances import forget_lapsed
from billing.idempotency import forget_old
from billing.inventory import read_inventory
from billing.invoices.prepaid import renew_expired
from billing.leadership import LeadersRounds
from billing.ledger import retention
from billing.ledger.chain import chain_waiting
from billing.ledger.checkpoints import end_days, sign_days
from billing.ledger.day_sums import round_of_days
from billing.ledger.event_days import make_ahead
from billing.loop import Loop, Seldom
from billing.metrics import BillingMetrics
from billing.migrate import upgrade
from billing.moments import DAY_MS, HOUR_MS, MINUTE_MS
from billing.reclaims.carry_out import Reclaimer
from billing.reclaims.cuts import rates_in_force
from billing.redis_watch import REDIS_WATCH_INTERVAL_MS, RedisWatch
from billing.settings import BillingSettings
from billing.usage.budget_alerts import AlertSender
from billing.usage.busy_cells import BusyCells
from billing.usage.consumer import MORE_WAITS, Consumer
from billing.usage.held_budgets import sweep
from billing.usage.reap import Reaper
from billing.wire import redis_clock
from billing.wire.certificates import checked_by
from billing.wire.listening import naming
from billing.wire.metrics_page import MetricsPage
from billing.wire.redis_address import parse_redis_url
from billing.wire.redis_server import require_usable

_log = logging.getLogger(__name__)

# Threads of the admin API have a connection each; the loops need a few of their own.
_SQL_POOL: Final = 10
_SQL_OVERFLOW: Final = 40
_REDIS_TIMEOUT_S: Final = 5.0
# The figures by which the cells' scripts decide are never older.
_ALLOCATE_INTERVAL_MS: Final = 1_000
# A round that takes longer runs on beside the next ones.
_PATIENCE_S: Final = 0.8
# How long the consumer waits for usage in one call: shorter than the client's time-out, and short enough to
# notice a stop.
_CONSUME_BLOCK_MS: Final = 2_000
# While no request runs, engines count nothing: one poll of six is made then.
_POLLS_AT_REST: Final = 6
# Contracts begin and end, and reclaims keep their deadlines, to within this time.
_CONTRACTS_INTERVAL_MS: Final = 1_000
# How often a process checks whether it leads. Each check costs an idle installation something.
_LEADS_INTERVAL_MS: Final = 5_000
# A lost instance, and a signed contract, are visible within 10 s: at every second check, also if it is late.
_INVENTORY_INTERVAL_MS: Final = 9_000
# Alerts of budgets are sent, and what nobody will record is given back, within this time.
_BUDGETS_INTERVAL_MS: Final = 5_000
# What waits to be chained is chained within a few seconds. After an upgrade that is everything; a stop waits
# for one round.
_CHAIN_BATCH: Final = 500
_CHAIN_BATCHES: Final = 20
# Partitions are made days ahead; a day that is due is looked through.
_DAYS_INTERVAL_MS: Final = HOUR_MS
# A day to which usage is added is added up a minute or two after the last of it.
_DAY_SUMS_INTERVAL_MS: Final = MINUTE_MS
# Answers are kept for a day, so one more or less matters little.
_FORGET_INTERVAL_MS: Final = 600_000
# Scripts of versions that were replaced take 40 kB each.
_LIBRARIES_INTERVAL_MS: Final = DAY_MS
# Balances by minute become balances by hour two weeks later.
_THIN_OUT_INTERVAL_MS: Final = HOUR_MS
# For the periodic audit, every half minute; one that an operator asks for waits longer.
_AUDIT_WAIT_MS: Final = 2_000


def run(settings: BillingSettings, stop: threading.Event) -> None:
    """Work until stopped. It waits out outages of Redis and PostgreSQL. Raises OSError if a port is taken;
    RedisAddressError, WrongRedis or DatabaseError for stores that cannot be used.
    """
    read_database_url(settings.database_url)
    address = require_usable(settings.redis_url)
    metrics = BillingMetrics()
    # Bound first: a second billing process on this machine fails here, before it has started anything.
    with naming("TAAS_ADMIN_PORT", settings.admin_port):
        admin_socket = _listen(settings.admin_host, settings.admin_port)
    with naming("TAAS_BILLING_METRICS_PORT", settings.metrics_port):
        page = MetricsPage(
            "billing", metrics.registry, host=settings.metrics_host, ports=[settings.metrics_port],
            redis_address=address,
        )  # fmt: skip
    with contextlib.closing(admin_socket), page:
        if not _migrate(settings, metrics, stop):
            return
        engine = connect(
            settings.database_url, pool_pre_ping=True, pool_size=_SQL_POOL, max_overflow=_SQL_OVERFLOW
        )
        # A loop retries by itself after its connection has died, and calls too often to check it each time.
        loops_engine = connect(
            settings.database_url,
            program="taas-loops",
            pool_size=_SQL_POOL,
            max_overflow=_SQL_OVERFLOW,
            pool_use_lifo=True,
        )
        client = redis.Redis(
            **address.client_arguments(),
            socket_timeout=_REDIS_TIMEOUT_S,
            socket_connect_timeout=_REDIS_TIMEOUT_S,
        )
        poller = CounterPoller(
            engine, client, timeout_ms=settings.engine_timeout_ms, ca_file=settings.upstream_ca_file
        )
        try:
            _work(settings, _Stores(engine, loops_engine, client), poller, metrics, stop, admin_socket)
        finally:
            poller.close()
            client.close()
            engine.dispose()
            loops_engine.dispose()


@dataclass(frozen=True, slots=True)
class _Stores:
    """PostgreSQL, as requests use it and as the loops do, and Redis."""

    engine: Engine
    loops_engine: Engine
    client: redis.Redis


def _work(
    settings: BillingSettings,
    stores: _Stores,
    poller: CounterPoller,
    metrics: BillingMetrics,
    stop: threading.Event,
    admin_socket: socket.socket,
) -> None:
    engine, client = stores.engine, stores.client
    busy = BusyCells(client)
    auditor = Auditor(engine, client, poller, busy, partial(checking_key, settings.evidence_key_file))
    projector = Projector(engine, client)
    app = build_app(settings, engine, client, auditor=auditor, projector=projector)
    server = _AdminServer(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    look = DueReader(stores.loops_engine)
    allocator = Allocator(
        stores.loops_engine, client, metrics, owner=name, rates_in_force=rates_in_force, busy=busy,
        patience_s=_PATIENCE_S, look=lambda: look.read().supply,
    )  # fmt: skip
    restorer = Restorer(
        stores.loops_engine, client, metrics, owner=name, rates_in_force=rates_in_force, busy=busy
    )
    metrics.shared.report_while(lambda: restorer.leads)
    watch = EngineWatch(client, timeout_ms=settings.engine_timeout_ms, ca_file=settings.upstream_ca_file)
    loops = [
        *_loops(settings, stores, poller, auditor, metrics, busy),
        *_capacity_loops(stores, projector, allocator, look, metrics),
        Loop("restorer", restorer.step, interval_ms=RESTORE_INTERVAL_MS, metrics=metrics),
        Loop(
            "libraries",
            partial(_forget_libraries, client),
            interval_ms=_LIBRARIES_INTERVAL_MS,
            metrics=metrics,
        ),
        Loop("engines", watch.step, interval_ms=WATCH_INTERVAL_MS, metrics=metrics),
        Loop(
            "redis",
            RedisWatch(client, parse_redis_url(settings.redis_url)).step,
            interval_ms=REDIS_WATCH_INTERVAL_MS,
            metrics=metrics,
        ),
    ]
    threads = [threading.Thread(target=loop.run, args=(stop,), name=loop.name) for loop in loops]
    # Joined after the loops: a request to the admin API may take its time, and no batch is left half done.
    admin = threading.Thread(
        target=_serve, args=(server, admin_socket, stop, metrics), name="admin-api", daemon=True
    )
    for thread in [*threads, admin]:
        thread.start()
    _log.info("billing works; admin API on %s:%d", *admin_socket.getsockname()[:2])
    stop.wait()
    _log.info("billing stops: batches that have begun are finished")
    for thread in threads:
        thread.join()
    watch.close()
    with contextlib.suppress(redis.RedisError):
        allocator.close()
        restorer.close()
    server.should_exit = True
    admin.join()


def _forget_libraries(client: redis.Redis) -> bool:
    forget_other_versions(client)
    return False


class _AdminServer(uvicorn.Server):
    """Checks once a second whether it is to end, not ten times: every check costs an idle installation
    something.
    """

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # noqa: ASYNC110 (another thread ends it, by `should_exit`)
            await asyncio.sleep(1)


def _serve(
    server: uvicorn.Server, admin_socket: socket.socket, stop: threading.Event, metrics: BillingMetrics
) -> None:
    degraded = metrics.degraded.labels("admin-api")
    degraded.set(0)
    try:
        server.run([admin_socket])
    except Exception:
        _log.exception("the admin API failed")
    if not stop.is_set():
        # Billing continues: usage is still recorded, and the metric shows the failure.
        degraded.set(1)
        _log.error("the admin API has ended although nobody asked it to")


def _loops(
    settings: BillingSettings,
    stores: _Stores,
    poller: CounterPoller,
    auditor: Auditor,
    metrics: BillingMetrics,
    busy: BusyCells,
) -> list[Loop]:
    client = stores.client
    name = f"{socket.gethostname()}-{secrets.token_hex(4)}"

    def consumer(suffix: str) -> Consumer:
        return Consumer(
            stores.loops_engine, client, name=name + suffix, batch=settings.usage_batch_entries,
            claim_idle_ms=settings.usage_claim_idle_ms, metrics=metrics, busy=busy,
        )  # fmt: skip

    reading, claiming = consumer(""), consumer("-claims")
    reaper = Reaper(client, metrics, patience_s=REAP_PATIENCE_S, calm_s=REAP_CALM_S, busy=busy)

    def consume() -> bool:
        return reading.consume_once(block_ms=_CONSUME_BLOCK_MS) >= MORE_WAITS

    def claim() -> bool:
        return claiming.claim_once() > 0

    rhythm = Seldom(_POLLS_AT_REST)

    def poll() -> bool:
        if rhythm.is_due(calm=busy.at_rest()):
            poller.poll_once()
            forget_lapsed(client)
        return False

    def audit() -> None:
        metrics.audited(auditor.audit(wait_ms=_AUDIT_WAIT_MS, facts=Facts.NEW))

    def thin_out() -> None:
        with stores.loops_engine.begin() as connection:
            balance_rows.thin_out(connection, redis_clock.now_ms(client))

    audits = LeadersRounds(metrics.shared.leads, audit, interval_ms=settings.audit_interval_ms)
    thinning = LeadersRounds(metrics.shared.leads, thin_out, interval_ms=_THIN_OUT_INTERVAL_MS)
    autoscaler = Autoscaler(stores.loops_engine, client, metrics.scaled)
    autoscaling = LeadersRounds(metrics.shared.leads, autoscaler.round, interval_ms=_LEADS_INTERVAL_MS)
    inventory = LeadersRounds(
        metrics.shared.leads,
        lambda: metrics.inventory.show(read_inventory(stores.loops_engine, client)),
        interval_ms=_INVENTORY_INTERVAL_MS,
    )

    return [
        Loop("consumer", consume, interval_ms=0, rest_ms=settings.usage_poll_ms, metrics=metrics),
        Loop("claims", claim, interval_ms=max(100, settings.usage_claim_idle_ms // 2), metrics=metrics),
        Loop("reaper", reaper.step, interval_ms=settings.reap_interval_ms, metrics=metrics),
        Loop("counters", poll, interval_ms=settings.counters_interval_ms, metrics=metrics),
        Loop(
            "audit",
            lambda: audits.step() or thinning.step(),
            interval_ms=min(_LEADS_INTERVAL_MS, settings.audit_interval_ms),
            metrics=metrics,
        ),
        Loop("autoscaling", autoscaling.step, interval_ms=_LEADS_INTERVAL_MS, metrics=metrics),
        Loop("inventory", inventory.step, interval_ms=_LEADS_INTERVAL_MS, metrics=metrics),
        _budget_loop(settings, stores, metrics),
        _chain_loop(settings, stores, metrics),
        _sink_loop(settings, stores, metrics),
        *_day_loops(settings, stores, metrics),
    ]


def _chain_loop(settings: BillingSettings, stores: _Stores, metrics: BillingMetrics) -> Loop:
    def chain() -> None:
        for _ in range(_CHAIN_BATCHES):
            with stores.loops_engine.begin() as connection:
                if not chain_waiting(connection, most=_CHAIN_BATCH):
                    break
        with stores.loops_engine.begin() as connection:
            end_days(connection)
            if settings.evidence_key_file is not None:
                sign_days(connection, signing_key(settings.evidence_key_file))

    rounds = LeadersRounds(metrics.shared.leads, chain, interval_ms=_LEADS_INTERVAL_MS)
    return Loop("chains", rounds.step, interval_ms=_LEADS_INTERVAL_MS, metrics=metrics)


def _day_loops(settings: BillingSettings, stores: _Stores, metrics: BillingMetrics) -> Iterator[Loop]:
    def look() -> None:
        with stores.loops_engine.begin() as connection:
            make_ahead(connection)
        if settings.usage_retention_days is not None:
            metrics.days_overdue.set(retention.drop_due(stores.loops_engine, settings.usage_retention_days))
        with stores.loops_engine.connect() as connection:
            metrics.oldest_day.set((retention.oldest_ms(connection) or 0) / 1000)

    def add_up() -> None:
        round_of_days(stores.loops_engine)

    for name, work, interval_ms in (
        ("days", look, _DAYS_INTERVAL_MS),
        ("day_sums", add_up, _DAY_SUMS_INTERVAL_MS),
    ):
        rounds = LeadersRounds(metrics.shared.leads, work, interval_ms=interval_ms)
        yield Loop(name, rounds.step, interval_ms=_LEADS_INTERVAL_MS, metrics=metrics)


def _budget_loop(settings: BillingSettings, stores: _Stores, metrics: BillingMetrics) -> Loop:
    sender = AlertSender(stores.loops_engine, verify=checked_by(ca_file=settings.upstream_ca_file))

    def look() -> None:
        sender.round()
        sweep(stores.loops_engine, stores.client)

    rounds = LeadersRounds(metrics.shared.leads, look, interval_ms=_BUDGETS_INTERVAL_MS)
    return Loop("budgets", rounds.step, interval_ms=_LEADS_INTERVAL_MS, metrics=metrics)


def _sink_loop(settings: BillingSettings, stores: _Stores, metrics: BillingMetrics) -> Loop:
    deliverer = Deliverer(stores.loops_engine, metrics, verify=checked_by(ca_file=settings.upstream_ca_file))

    def deliver() -> bool:
        return metrics.shared.leads() and deliverer.round()

    return Loop("sinks", deliver, interval_ms=_LEADS_INTERVAL_MS, metrics=metrics)


def _capacity_loops(
    stores: _Stores, projector: Projector, allocator: Allocator, look: DueReader, metrics: BillingMetrics
) -> list[Loop]:
    engine = stores.loops_engine
    keeping_up = Projector(engine, stores.client)
    reclaimer = Reclaimer(engine, stores.client, projector)

    def allocate() -> bool:
        allocator.allocate_once()
        return False

    def advance_contracts() -> bool:
        due = look.read()
        if due.contracts:
            with engine.begin() as connection:
                advance(connection, store.now_ms(connection))
        if due.budgets:
            with engine.begin() as connection:
                begin_periods(connection, store.now_ms(connection))
                renew_expired(connection, store.now_ms(connection))
        return due.reclaims and reclaimer.step()

    def keep_up() -> bool:
        return keeping_up.keep_up(lambda: look.read().projection)

    def forget() -> bool:
        with engine.begin() as connection:
            return forget_old(connection) > 0

    return [
        Loop("allocator", allocate, interval_ms=_ALLOCATE_INTERVAL_MS, metrics=metrics),
        Loop("contracts", advance_contracts, interval_ms=_CONTRACTS_INTERVAL_MS, metrics=metrics),
        Loop("idempotency", forget, interval_ms=_FORGET_INTERVAL_MS, metrics=metrics),
        Loop("projection", keep_up, interval_ms=KEEP_UP_INTERVAL_MS, metrics=metrics),
    ]


def _migrate(settings: BillingSettings, metrics: BillingMetrics, stop: threading.Event) -> bool:
    """Upgrade the database to the newest schema, waiting until it answers. Returns False if it is told to
    stop before. Raises DatabaseError.
    """
    done = threading.Event()
    refused: list[DatabaseError] = []

    def migrate() -> bool:
        try:
            upgrade(settings.database_url)
        except DatabaseError as exc:
            refused.append(exc)
        done.set()
        return False

    either = _Either(stop, done)
    Loop("migration", migrate, interval_ms=0, metrics=metrics).run(either)
    if refused:
        raise refused[0]
    return done.is_set()


# A gateway renews each lease at least every 3.5 s; it drains its journal once a second, after at most a
# second of reconnecting.
REAP_PATIENCE_S: Final = 5.0
REAP_CALM_S: Final = 15


class _Either(threading.Event):
    """Set when one of two events is; it waits for the first, which a signal sets."""

    def __init__(self, stop: threading.Event, done: threading.Event) -> None:
        super().__init__()
        self._stop = stop
        self._done = done

    def is_set(self) -> bool:
        return self._stop.is_set() or self._done.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._done.is_set() or self._stop.wait(timeout)


def _listen(host: str, port: int) -> socket.socket:
    listening = socket.create_server((host, port), backlog=128)
    listening.set_inheritable(True)
    return listening
