"""One round of one cell: read its state, compute figures and evidence, record the evidence in SQL, write the
figures to Redis, grant slots.

SQL comes first. If a round ends between the two, the next one repeats it from the same state with the same
outcome.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import redis
from sqlalchemy import Connection, Engine

from billing.allocator import capacity_usage, cell_state, minutes, shares
from billing.allocator.cell_state import CellState, ContractHash, Memory, Numbers
from billing.allocator.minutes import Account, Minute, Totals
from billing.allocator.shares import ContractUse, Health, InFlight, ReadyInstance, Share
from billing.allocator.supply import CalibrationInForce, Cell, EndedContract, PoolSupply
from billing.contracts.rates import ContractRate
from billing.contracts.terms import burst_mu
from billing.moments import DAY_MS, MINUTE_MS
from billing.wire.instance_entry import InstanceEntry

# Another process records cuts, a moment after they happen or, after a pause, all of them later.
_CUTS_LATE_MS: Final = 5 * MINUTE_MS
_CUTS_FILLED_IN_MS: Final = DAY_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """What has come of one contract since the last round, in mu and refused requests. `used_mu` may be below
    0 after work was given back. `missing_mu`: its ready instances could not have done it. `limited`: requests
    that it had room for and that a limit of its tenant or key refused, by limit.
    """

    contract_id: str
    tenant: str
    assigned_mu_s: int
    used_mu: int
    lent_mu: int
    borrowed_mu: int
    refused: int
    missing_mu: int
    limited: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a round has found and written. `cut_mu`: the new value of each contract and minute in which it has
    changed. `preempt_repeats`: preempted flex requests that had not stopped and were signalled again.
    `failure`: why slots were not granted; all the rest is written. `is_still`: nothing is sold or runs here,
    and the next round would find the same unless something arrives.
    """

    cell: Cell
    now_ms: int
    calibration: CalibrationInForce | None
    shares: tuple[Share, ...]
    in_flight: Mapping[str, InFlight]
    on_demand_waits: int
    flex_waits: int
    contracts: tuple[Came, ...]
    cut_mu: Mapping[tuple[str, int], int]
    preempt_repeats: int = 0
    failure: redis.RedisError | None = None
    is_still: bool = False

    @property
    def preempt(self) -> dict[str, int]:
        """Flex sequences to stop, by instance."""
        return {share.instance: share.preempt for share in self.shares if share.preempt}


@dataclass(frozen=True, slots=True)
class _Books:
    """The evidence of a round, by contract: the minutes to write and the accounts after it; what came; the
    recent use.
    """

    minutes: dict[str, list[Minute]] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    came: list[Came] = field(default_factory=list)
    recent_mu_s: dict[str, float] = field(default_factory=dict)


def allocate(
    engine: Engine,
    client: redis.Redis,
    cell: Cell,
    supply: PoolSupply,
    ready: Sequence[InstanceEntry],
    now_ms: int | None = None,
) -> Round | None:
    """Run a round with the cell's ready instances. `now_ms` is Redis's clock as the cell is read, unless
    given. Returns None if another allocator has written meanwhile. Raises redis.RedisError, SQLAlchemyError;
    then the last figures stay in force.
    """
    calibration = supply.calibration
    capacity_mu_s = calibration.capacity_mu_s if calibration else 0
    # Of a provider nothing is sold: it has the slots that its operator has declared.
    declared = [each for each in ready if each.max_concurrency is not None]
    measured = [each for each in ready if each.max_concurrency is None]
    ready_mu_s = capacity_mu_s * len(measured)
    signed = {rate.tenant: rate for rate in supply.signed}
    rates = {rate.tenant: rate for rate in supply.rates if rate.tenant in signed}
    ended = _ended(client, cell, rates, supply.ended)
    # Read before the totals: what settles in between is in the totals.
    charged = cell_state.charged_tenants(client, cell.cell, ended)
    state = cell_state.read_state(client, cell.cell, [*rates, *ended])
    now_ms = state.read_ms if now_ms is None else now_ms
    books = _advance(state, ended, ready_mu_s, now_ms)
    missing = shares.missing({each.contract_id: each.mu_s for each in rates.values()}, ready_mu_s)
    cut_mu: dict[tuple[str, int], int] = {}
    if signed or books.accounts:
        with engine.begin() as connection:
            _begin(connection, books, state, signed, missing, now_ms)
            capacity_usage.write_minutes(connection, books.minutes)
            cut_mu = capacity_usage.take_cuts(connection, list(books.accounts), _cuts_since(state, now_ms))
    holders = [
        ContractUse(rate.mu_s, books.recent_mu_s.get(rate.contract_id, 0.0)) for rate in rates.values()
    ]
    health, divided, lending = _divide(state, measured, calibration, holders)
    divided += [
        shares.declared(each.instance, each.max_concurrency or 0, _flight(state, each)) for each in declared
    ]
    numbers = {tenant: _in_force(rate) for tenant, rate in rates.items()}
    numbers |= {tenant: _over(ended[tenant]) for tenant in charged}
    memory = Memory(now_ms, state.work_mu, health, books.recent_mu_s, lending)
    written = cell_state.write_state(
        client,
        cell.cell,
        read=state,
        contracts=numbers,
        accounts={tenant: books.accounts[each.contract_id] for tenant, each in numbers.items()},
        shares=divided,
        capacity_mu_s=capacity_mu_s,
        gone=state.instances - {share.instance for share in divided},
        memory=memory,
    )
    if not written:
        return None
    preempt_repeats, failure = 0, None
    try:
        cell_state.forget_contracts(client, cell.cell, ended.keys() - charged)
        preempt_repeats = cell_state.grant(client, cell.cell)
    except redis.RedisError as exc:
        failure = exc  # the evidence is recorded: the caller counts it nevertheless
    in_flight = {each.instance: _flight(state, each) for each in ready}
    return Round(
        cell=cell, now_ms=now_ms, calibration=calibration, shares=tuple(divided), in_flight=in_flight,
        on_demand_waits=state.on_demand_waits, flex_waits=state.flex_waits, contracts=tuple(books.came),
        cut_mu=cut_mu, preempt_repeats=preempt_repeats, failure=failure,
        is_still=_is_still(supply, state, memory),
    )  # fmt: skip


def _flight(state: CellState, each: InstanceEntry) -> InFlight:
    return state.in_flight.get(each.instance, InFlight())


def _is_still(supply: PoolSupply, state: CellState, memory: Memory) -> bool:
    """Also whether every instance is trusted with all that was calibrated, and nothing that was lent is
    called back.
    """
    sold = supply.signed or supply.ended or state.contracts
    runs = state.on_demand_waits or state.flex_waits or any(each.all for each in state.in_flight.values())
    calibrated = supply.calibration.sequences if supply.calibration else 0
    whole = all(health.sequences >= calibrated for health in memory.health.values())
    return whole and not sold and not runs and memory.lending == state.memory.lending


def _ended(
    client: redis.Redis, cell: Cell, rates: Mapping[str, ContractRate], lately: Sequence[EndedContract]
) -> dict[str, EndedContract]:
    """Contracts that have ended and whose figures are still in the cell, by tenant, unless another contract
    has followed.
    """
    ended: dict[str, EndedContract] = {}
    for each in lately:
        if each.tenant not in rates:
            ended.setdefault(each.tenant, each)
    if not ended:
        return {}
    contracts = {tenant: each.contract_id for tenant, each in ended.items()}
    return {tenant: ended[tenant] for tenant in cell_state.left_behind(client, cell.cell, contracts)}


def _advance(state: CellState, ended: Mapping[str, EndedContract], capacity_mu_s: int, now_ms: int) -> _Books:
    """Advance the evidence of every contract in the cell to now, at the rate that was in force since the last
    round.
    """
    books = _Books()
    accounts = {tenant: _account(hash_, now_ms) for tenant, hash_ in state.contracts.items()}
    ends = {
        tenant: min(hash_.end_ms, ended[tenant].end_ms) if tenant in ended else hash_.end_ms
        for tenant, hash_ in state.contracts.items()
    }
    used, idle, missing = {}, {}, {}
    for tenant, hash_ in state.contracts.items():
        held_ms = max(0, min(now_ms, ends[tenant]) - accounts[tenant].at_ms)
        used[tenant] = hash_.totals.since(accounts[tenant].totals).used_mu
        idle[tenant] = max(0, hash_.rate_mu_s * held_ms // 1000 - used[tenant])
        missing[tenant] = accounts[tenant].missing_mu_s * held_ms // 1000
    lent = _lent(state, idle, sum(used.values()), capacity_mu_s, now_ms)
    for tenant, hash_ in state.contracts.items():
        account = accounts[tenant]
        change = hash_.totals.since(account.totals)
        touched, after = minutes.advance(
            account, now_ms, hash_.totals, end_ms=ends[tenant], lent_mu=lent[tenant]
        )
        contract_id = account.contract_id
        books.minutes[contract_id] = touched
        books.accounts[contract_id] = after
        books.came.append(
            Came(
                contract_id=contract_id,
                tenant=tenant,
                assigned_mu_s=hash_.rate_mu_s,
                used_mu=change.used_mu,
                lent_mu=lent[tenant],
                borrowed_mu=change.borrowed_mu,
                refused=change.refused,
                missing_mu=missing[tenant],
                limited={
                    "requests": change.limited_requests,
                    "concurrency": change.limited_concurrency,
                    "cancels": change.limited_cancels,
                },
            )
        )
        before_mu_s = state.memory.recent_mu_s.get(contract_id, 0.0)
        books.recent_mu_s[contract_id] = shares.recent(
            before_mu_s, change.used_mu, now_ms - account.at_ms, hash_.rate_mu_s
        )
    return books


def _account(hash_: ContractHash, now_ms: int) -> Account:
    """The account in the hash. If there is none, all that the hash has counted is still to be recorded."""
    if hash_.account is not None and hash_.account.contract_id == hash_.contract_id:
        return hash_.account
    return minutes.opened(hash_.contract_id, now_ms, Totals())


def _lent(
    state: CellState, idle_mu: Mapping[str, int], used_mu: int, capacity_mu_s: int, now_ms: int
) -> dict[str, int]:
    elapsed_ms = now_ms - state.memory.at_ms if state.memory.at_ms else 0
    others_mu = state.work_mu - state.memory.work_mu - used_mu if elapsed_ms > 0 else 0
    unsold_mu_s = max(0, capacity_mu_s - sum(hash_.rate_mu_s for hash_ in state.contracts.values()))
    return shares.lent(idle_mu, others_mu, unsold_mu_s * max(0, elapsed_ms) // 1000)


def _begin(
    connection: Connection,
    books: _Books,
    state: CellState,
    rates: Mapping[str, ContractRate],
    missing: Mapping[str, int],
    now_ms: int,
) -> None:
    """Set the signed rates, and what is missing of them, from now on, by contract. Opens an account for each
    contract without one: a new contract, one that follows another in its hash, or one that Redis has lost.
    """
    for tenant, rate in rates.items():
        account = books.accounts.get(rate.contract_id)
        if account is None:
            standing = state.contracts.get(tenant)
            written = capacity_usage.read_minute(connection, rate.contract_id, minutes.minute_of(now_ms))
            totals = standing.totals if standing else Totals()
            account = minutes.opened(rate.contract_id, now_ms, totals, minute=written)
        books.accounts[rate.contract_id] = replace(
            account, rate_mu_s=rate.mu_s, missing_mu_s=missing.get(rate.contract_id, 0)
        )


def _cuts_since(state: CellState, now_ms: int) -> int:
    """From when on cuts are read: once a minute further back."""
    begun = minutes.minute_of(now_ms)
    return begun - (_CUTS_LATE_MS if minutes.minute_of(state.memory.at_ms) == begun else _CUTS_FILLED_IN_MS)


def _divide(
    state: CellState,
    ready: Sequence[InstanceEntry],
    calibration: CalibrationInForce | None,
    holders: Sequence[ContractUse],
) -> tuple[dict[str, Health], list[Share], float]:
    """Health and shares of the instances, and what on-demand is trusted with. Without a calibration nothing
    is bounded.
    """
    if calibration is None:
        return {}, [], 0.0
    health = {
        each.instance: shares.corrected(
            state.memory.health.get(each.instance),
            calibration.sequences,
            each.load,
        )
        for each in ready
    }
    machines = [
        ReadyInstance(name, each, state.in_flight.get(name, InFlight())) for name, each in health.items()
    ]
    waits = state.on_demand_requests
    unsold_part = shares.unsold(machines, holders, calibration.capacity_mu_s)
    lending = shares.trusted(state.memory.lending, machines, unsold_part)
    divided = shares.divide(
        machines, holders, calibration.capacity_mu_s, on_demand_waits=waits, lending=lending
    )
    return health, divided, lending


def _in_force(rate: ContractRate) -> Numbers:
    return Numbers(
        contract_id=rate.contract_id,
        rate_mu_s=rate.mu_s,
        overflow=rate.overflow,
        spill_mu_s=rate.spill_mu_s,
        end_ms=rate.end_ms,
        burst_mu=burst_mu(rate.mu_s, rate.burst_ms),
    )


def _over(ended: EndedContract) -> Numbers:
    return Numbers(
        contract_id=ended.contract_id, rate_mu_s=0, overflow="reject", spill_mu_s=None, end_ms=ended.end_ms
    )
