"""Cost: what a request takes of CPU in gateway and Valkey does not depend on how many tenants there are, or
how many requests wait.

Owns both comparisons. Tenants by the thousand are written where gateways read them (docs/interfaces.md §3),
as billing writes them: the admin API takes them one at a time.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import orjson
import redis

from loadtest.scenarios.arrivals import Arrival, Shape, even, requests, together
from loadtest.scenarios.client import Load
from loadtest.scenarios.measures import codes, due
from loadtest.scenarios.play import conditions, play
from loadtest.scenarios.record import Ended, Record
from loadtest.scenarios.result import Result, at_least, at_most
from loadtest.scenarios.speed import EngineSpeed
from loadtest.scenarios.stack import ScenarioStack, running

SPEED = EngineSpeed()
FEW, MANY = 10, 100_000
WAITING = 5000
PROBE = Shape(40, 2)
PROBE_RATE = 100.0
# Never done within a run: it holds all the room there is.
HOLD = Shape(40, 7000)
GROWTH_MAX = 1.2
_BATCH = 2000
_FILL_S = 25.0
_TRICKLE_RATE = 5.0
# Flex waits for a minute at most, and the first come after five seconds: all must still wait at the end.
_WAIT_HALF_S_MAX = 17.0


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds of all gateways, and of Valkey."""

    gateway_s: float
    valkey_s: float

    @property
    def total_s(self) -> float:
        """Of both."""
        return self.gateway_s + self.valkey_s

    def minus(self, other: "Cpu") -> "Cpu":
        """The difference."""
        return Cpu(self.gateway_s - other.gateway_s, self.valkey_s - other.valkey_s)

    def microseconds(self, requests: int) -> dict[str, float]:
        """A request."""
        return {"gateway": 1e6 * self.gateway_s / requests, "valkey": 1e6 * self.valkey_s / requests}


def used(stack: ScenarioStack) -> Cpu:
    """So far."""
    return Cpu(sum(child.cpu_s() for child in stack.gateways), stack.valkey.cpu_s())


def probe_requests(names: list[str], begin_s: float, end_s: float) -> list[Arrival]:
    """Short requests at a rate far below what the pool can do, by each tenant in turn."""
    each = PROBE_RATE / len(names)
    offset = 1 / PROBE_RATE
    return together(*(
        requests(name, (at + offset * number for at in even(each, begin_s, end_s - 1 / each)), PROBE,
        gateways=(1,)) for number, name in enumerate(names)
    ))  # fmt: skip


def measure(
    stack: ScenarioStack, arrivals: list[Arrival], begin_s: float, end_s: float
) -> tuple[Cpu, Cpu, list[Record]]:
    """(CPU used while the load stands still, for as long before `begin_s`; in [begin_s, end_s]; records)."""
    readings: list[Cpu] = []

    async def meter(load: Load) -> None:
        for at in (2 * begin_s - end_s, begin_s, end_s):
            await asyncio.sleep(max(0.0, at - load.now_s))
            readings.append(used(stack))

    records = play(stack, arrivals, patience_s=1.0, beside=meter)
    return readings[1].minus(readings[0]), readings[2].minus(readings[1]), records


def tenants(seconds: float) -> list[Result]:
    """The same ten tenants send, alone in the catalogue and then among a hundred thousand; then everybody
    sends in turn.
    """
    names = [f"tenant-{number}" for number in range(FEW)]
    half = seconds / 2
    cost = {}
    with running(SPEED, gateways=1) as stack:
        for name in names:
            stack.add_tenant(name)
        play(stack, probe_requests(names, 0, 3), patience_s=5)  # connections and caches
        for count in (FEW, MANY):
            if count == MANY:
                crowd = fill_catalogue(stack, MANY - FEW)
            arrivals = probe_requests(names, half, 2 * half)
            idle, busy, records = measure(stack, arrivals, half, 2 * half)
            cost[count] = busy.minus(idle)
        everybody = list(islice(crowd, round(PROBE_RATE * half)))
        stack.keys.update(everybody)
        arrivals = [
            Arrival(half + number / PROBE_RATE, name, PROBE) for number, (name, _) in enumerate(everybody)
        ]
        idle, busy, strangers = measure(stack, arrivals, half, 2 * half)
    grown = cost[MANY].total_s / cost[FEW].total_s
    not_served = sum(record.ended is not Ended.COMPLETE for record in [*records, *strangers])
    verdicts = [
        at_most(f"CPU a request with {MANY:,} tenants / with {FEW}", grown, GROWTH_MAX),
        at_most("requests not served", not_served, 0),
    ]
    return [Result("cpu-tenants", verdicts, {
        "µs a request": {f"{count:,} tenants": cpu.microseconds(len(records)) for count, cpu in cost.items()},
        "µs a request, each by a tenant not seen before": busy.minus(idle).microseconds(len(strangers)),
        "not served": codes([*records, *strangers]), **conditions(records),
    })]  # fmt: skip


def fill_catalogue(stack: ScenarioStack, count: int) -> Iterator[tuple[str, str]]:
    """So many tenants with a key each, in Redis; returns (name, key) of each."""
    made = [(f"crowd-{number}", f"sk-crowd-{number:032d}") for number in range(count)]
    with redis.Redis.from_url(stack.redis_url) as client:
        for begin in range(0, count, _BATCH):
            pipe = client.pipeline(transaction=False)
            for name, key in made[begin : begin + _BATCH]:
                hashed = hashlib.sha256(key.encode()).hexdigest()
                pipe.set(f"taas:key:{hashed}", orjson.dumps({
                    "key_id": f"key-{name}", "tenant": name, "project": "default", "expires_at_ms": None,
                    "hash": hashed, "limits": [],
                }))  # fmt: skip
                pipe.set(f"taas:tenant:{name}", orjson.dumps({
                    "tenant": name, "name": name, "kind": "external", "status": "active", "on_demand": True,
                    "redis_down": {"policy": "refuse"}, "weight": 1, "limits": [],
                }))  # fmt: skip
            pipe.execute()
    return iter(made)


def waiting(seconds: float) -> list[Result]:
    """An owner's requests while all room is taken: first with nobody waiting, then with five thousand of a
    hundred tenants.
    """
    half = min(seconds / 2, _WAIT_HALF_S_MAX)
    begin_s, end_s = _FILL_S + half, _FILL_S + 2 * half
    crowd = [f"crowd-{number}" for number in range(100)]
    # It asks for a little all the time: what an idle owner has is lent whole, and streams that long would not
    # give it back.
    owner = together(
        requests("owner", even(_TRICKLE_RATE, 0, begin_s), PROBE, gateways=(1,)),
        requests("owner", even(PROBE_RATE / 2, begin_s, end_s), PROBE, gateways=(1,)),
    )
    # On demand what it may have, flex what is kept for the owner.
    holders = together(*(
        [arrival for name in crowd for arrival in requests(name, [at] * 2, HOLD, tier=tier, gateways=(1,
        ))][: SPEED.slots]
        for at, tier in ((3.0, "default"), (4.0, "flex"))
    ))  # fmt: skip
    net, gross, standing, waited, served = {}, {}, {}, {}, {}
    with running(SPEED, gateways=1) as stack:
        for name in ("owner", *crowd):
            stack.add_tenant(name)
        stack.sign("owner", 0.6 * SPEED.capacity_units_s)
        for count in (0, WAITING):
            each = count // len(crowd)
            queue = [
                arrival
                for number, name in enumerate(crowd)
                for arrival in requests(
                    name,
                    (5 + (number + 100 * turn) * 20 / WAITING for turn in range(each)),
                    HOLD,
                    tier="flex",
                    gateways=(1,),
                )
            ]
            idle, busy, records = measure(stack, together(holders, queue, owner), begin_s, end_s)
            mine = due([record for record in records if record.arrival.tenant == "owner"], begin_s, end_s)
            net[count], gross[count], standing[count] = busy.minus(idle), busy, idle.total_s / half
            waited[count] = sum(
                record.sent_s < begin_s and record.waiting_until_s > end_s
                for record in records
                if record.arrival.tier == "flex"
            )
            served[count] = sum(record.ended is Ended.COMPLETE for record in mine) / len(mine)
    verdicts = [
        at_most(
            f"CPU a request with {WAITING:,} waiting / with none",
            net[WAITING].total_s / net[0].total_s,
            GROWTH_MAX,
        ),
        at_least("requests that waited all the time", waited[WAITING], 0.9 * WAITING),
        at_least("owner's requests served", min(served.values()), 1.0),
    ]
    return [Result("cpu-waiting", verdicts, {
        "µs a request": {f"{count:,} waiting": cpu.microseconds(len(mine)) for count, cpu in net.items()},
        "the same with the CPU of standing "
        "still": {f"{count:,} waiting": cpu.microseconds(len(mine)) for count, cpu in gross.items()},
        "CPU of standing still, share of a core": {f"{count:,} waiting": share for count,
        share in standing.items()},
        "owner not served": codes(mine), **conditions(records),
    })]  # fmt: skip
