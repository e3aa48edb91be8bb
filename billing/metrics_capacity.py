"""The metrics of the allocator, for each contract and pool that this process allocates. It owns metric names
and labels; it measures nothing.

Work is in work units. A counter belongs to its process: when another one leads, its own counter continues.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from billing.moments import HOUR_MS

if TYPE_CHECKING:
    from billing.allocator.round import Came, Round

_MU: Final = 1000
_CONTRACT: Final = ("tenant", "pool", "contract")


class CapacityMetrics:
    """All of them, in the registry of the billing process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._make_of_contracts(registry)
        self._make_of_pools(registry)
        self._pools: dict[str, str] = {}
        self._cells: set[str] = set()
        self._contracts: dict[str, set[tuple[str, ...]]] = {}
        self._owed: dict[tuple[Counter, tuple[str, ...]], float] = {}
        self._cuts: dict[tuple[str, int], int] = {}

    def _make_of_contracts(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(name, text, (*_CONTRACT, *more), registry=registry)

        self.assigned = Gauge(
            "taas_contract_assigned_units_per_second",
            "Units per second that a contract may use now.",
            _CONTRACT,
            registry=registry,
        )
        self.used = counter("taas_contract_used_units", "Work that was done within a contract.")
        self.lent = counter(
            "taas_contract_lent_units", "Work of a contract that its holder left idle and that others used."
        )
        self.borrowed = counter(
            "taas_contract_borrowed_units",
            "Work of a contract's holder beyond its contract, which was served as on-demand.",
        )
        self.refused = counter(
            "taas_contract_refused_requests",
            "Requests that were refused because they were beyond the contract or because no engine was "
            "there.",
        )
        self.limited = counter(
            "taas_contract_limited_requests",
            "Requests that a contract had capacity for and that a limit of its tenant or key refused.",
            "limit",
        )
        self.shortfall = counter(
            "taas_contract_shortfall_units",
            "Work that a contract lacked, because a reclaim cut it or engines were missing.",
        )
        self.missing = counter(
            "taas_contract_missing_units",
            "The part of a contract's shortfall for which too few engines were ready.",
        )

    def _make_of_pools(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self.capacity = gauge(
            "taas_pool_capacity_units_per_second",
            "Units per second that a pool's ready engines can do, as calibrated.",
            "pool",
        )
        self.room = gauge(
            "taas_pool_room_sequences",
            "Sequences that a pool's ready engines are trusted with: kept for reserved, open to on-demand"
            " (flex may use what of it is idle), and for flex alone. Their sum is all of them.",
            "pool",
            "class",
        )
        self.in_flight = gauge(
            "taas_pool_in_flight_sequences",
            "Sequences in flight at the ready engines of a pool, by class.",
            "pool",
            "class",
        )
        self.waiting = gauge(
            "taas_pool_waiting_tenants",
            "Tenants with requests in the queue of a pool, by class.",
            "pool",
            "class",
        )
        self.preempt = gauge(
            "taas_pool_preempt_sequences",
            "Flex sequences in flight that are to be preempted.",
            "pool",
        )
        self.preempt_repeats = Counter(
            "taas_pool_preempt_repeats",
            "Preempted flex requests that did not stop within three seconds and were signalled again.",
            ["pool"],
            registry=registry,
        )
        self.calibration_age = gauge(
            "taas_pool_calibration_age_seconds", "Age of the calibration by which a pool is divided.", "pool"
        )
        self.allocated = gauge(
            "taas_allocator_working",
            "1 where this process allocates the cell, 0 where it holds the cell and cannot.",
            "cell",
        )
        self.restored = Counter(
            "taas_cells_restored",
            "Cells whose limits were recounted from the ledger, because Redis may have lost some.",
            registry=registry,
        )

    def held(self, cells: Collection[str], failing: Collection[str]) -> None:
        """Note which cells this process allocates, and which of them it cannot. The gauges of others are
        removed, because they would be out of date.
        """
        for cell in cells:
            self.allocated.labels(cell).set(int(cell not in failing))
        for gone in self._cells.difference(cells):
            self.allocated.remove(gone)
            if gone in self._pools:
                self._forget(self._pools.pop(gone))
        self._cells = set(cells)

    def round(self, done: "Round") -> None:
        """Publish what a round found and wrote."""
        pool = done.cell.pool
        self._pools[done.cell.cell] = pool
        if done.calibration is not None:
            measured = sum(share.measured for share in done.shares)
            self.capacity.labels(pool).set(done.calibration.capacity_mu_s * measured / _MU)
            self.calibration_age.labels(pool).set((done.now_ms - done.calibration.created_ms) / 1000)
            self.room.labels(pool, "reserved").set(sum(share.held for share in done.shares))
            self.room.labels(pool, "on_demand").set(sum(share.on_demand for share in done.shares))
            self.room.labels(pool, "flex").set(sum(share.room - share.on_demand for share in done.shares))
        self.preempt.labels(pool).set(sum(done.preempt.values()))
        self.preempt_repeats.labels(pool).inc(done.preempt_repeats)
        for class_ in ("reserved", "on_demand", "flex"):
            flying = sum(getattr(each, class_) for each in done.in_flight.values())
            self.in_flight.labels(pool, class_).set(flying)
        self.waiting.labels(pool, "on_demand").set(done.on_demand_waits)
        self.waiting.labels(pool, "flex").set(done.flex_waits)
        before = self._contracts.get(pool, set())
        now: set[tuple[str, ...]] = set()
        for came in done.contracts:
            labels: tuple[str, ...] = (came.tenant, pool, came.contract_id)
            now.add(labels)
            self._came(labels, came)
        for gone in before - now:
            self.assigned.remove(*gone)
        self._contracts[pool] = now
        self._cut(done)

    def _came(self, labels: tuple[str, ...], came: "Came") -> None:
        self.assigned.labels(*labels).set(came.assigned_mu_s / _MU)
        self._add(self.used, labels, came.used_mu / _MU)
        self._add(self.lent, labels, came.lent_mu / _MU)
        self._add(self.borrowed, labels, came.borrowed_mu / _MU)
        self._add(self.refused, labels, came.refused)
        for limit, requests in came.limited.items():
            self._add(self.limited, (*labels, limit), requests)
        self._add(self.missing, labels, came.missing_mu / _MU)
        self._add(self.shortfall, labels, came.missing_mu / _MU)

    def _cut(self, done: "Round") -> None:
        tenants = {came.contract_id: came.tenant for came in done.contracts}
        for (contract_id, minute_ms), cut_mu in done.cut_mu.items():
            more_mu = cut_mu - self._cuts.get((contract_id, minute_ms), 0)
            self._cuts[contract_id, minute_ms] = cut_mu
            if contract_id in tenants:
                self._add(self.shortfall, (tenants[contract_id], done.cell.pool, contract_id), more_mu / _MU)
        self._cuts = {each: mu for each, mu in self._cuts.items() if each[1] > done.now_ms - HOUR_MS}

    def _add(self, counter: Counter, labels: tuple[str, ...], amount: float) -> None:
        """A counter only grows: what is given back is subtracted from what comes next."""
        amount += self._owed.pop((counter, labels), 0.0)
        if amount < 0:
            self._owed[counter, labels] = amount
        counter.labels(*labels).inc(max(0.0, amount))

    def _forget(self, pool: str) -> None:
        """Remove the gauges of a pool that another process allocates now."""
        for labels in self._contracts.pop(pool, set()):
            self.assigned.remove(*labels)
        for gauge in (
            self.capacity,
            self.room,
            self.in_flight,
            self.waiting,
            self.preempt,
            self.calibration_age,
        ):
            gauge.remove_by_labels({"pool": pool})
