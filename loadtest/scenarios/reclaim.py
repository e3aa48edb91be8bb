"""Reclaim: half a pool is taken back under load. No stream is cut that could have finished in time, nobody
within a contract is refused.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from loadtest.scenarios.arrivals import Arrival, Shape, even, poisson, requests, together
from loadtest.scenarios.client import Load
from loadtest.scenarios.measures import by_tenant, codes, due, refusals, ttft_ms, work_between
from loadtest.scenarios.play import conditions, play
from loadtest.scenarios.record import Ended, Record
from loadtest.scenarios.result import Result, at_least, at_most
from loadtest.scenarios.speed import EngineSpeed
from loadtest.scenarios.stack import POOL, ScenarioStack, running

SPEED = EngineSpeed()
ENGINES = 2
# Fits into the half that stays.
CONTRACT_UNITS_S = 0.4 * SPEED.capacity_units_s
USED = 0.95
OWNER = Shape(100, 60)
CROWD = Shape(100, 100)
# 20 s at the engine's pace: what has just begun when the reclaim is ordered cannot end before the deadline.
LONG = Shape(100, 2000)
NOTICE_S = 8.0
BEFORE_S = 10.0


def load(end_s: float) -> list[Arrival]:
    """A crowd that wants one and a half pools, some of it in long streams, and an owner within its
    contract.
    """
    pool = ENGINES * SPEED.capacity_units_s
    rate = pool / SPEED.units(CROWD.input_tokens, CROWD.output_tokens)
    owner = USED * CONTRACT_UNITS_S / SPEED.units(OWNER.input_tokens, OWNER.output_tokens)
    return together(
        requests("owner", even(owner, 0, end_s), OWNER),
        requests("one", poisson(rate, 0, end_s, 1), CROWD, tier="default"),
        requests("flex", poisson(rate / 2, 0, end_s, 2), CROWD, tier="flex"),
        requests("long", even(0.5, 0, end_s), LONG, tier="default"),
    )


def run(seconds: float) -> list[Result]:
    """The order comes after ten seconds, for eight seconds later; `seconds` is how long callers go on
    after that.
    """
    told: dict[str, Any] = {}
    end_s = BEFORE_S + NOTICE_S + seconds
    with running(SPEED, engines=ENGINES) as stack:
        for name in ("owner", "one", "flex", "long"):
            stack.add_tenant(name)
        stack.sign("owner", CONTRACT_UNITS_S)

        async def operator(load: Load) -> None:
            await asyncio.sleep(BEFORE_S - load.now_s)
            by = datetime.now(UTC) + timedelta(seconds=NOTICE_S)
            told["deadline_s"] = load.now_s + NOTICE_S
            told["reclaim"] = await asyncio.to_thread(order, stack, by)

        records = play(stack, load(end_s), patience_s=30, beside=operator)
        told["after"] = stack.admin.get("/admin/v1/reclaims", params={"pool": POOL}).json()
        told["history"] = stack.admin.get(f"/admin/v1/reclaims/{told['reclaim']['reclaim']}").json()[
            "history"
        ]
    return [judge(records, told, end_s)]


def order(stack: ScenarioStack, by: datetime) -> dict[str, Any]:
    """One of the two machines, for research."""
    asked = {"pool": POOL, "instances": 1, "use": "research", "by": by.isoformat().replace("+00:00", "Z")}
    return stack.post("reclaims", asked)


def named(history: list[dict[str, Any]], change: str) -> int:
    """How many requests such steps of a reclaim name."""
    return sum(len(step["detail"]["requests"]) for step in history if step["change"] == change)


def could_have_finished(record: Record, deadline_s: float) -> bool:
    """Whether a stream that was cut would have ended by the deadline, at the pace that it had."""
    if record.ended is not Ended.CUT or record.end_s is None or record.first_s is None:
        return record.ended is Ended.CUT and record.end_s is not None and record.end_s < deadline_s
    streamed_s = record.end_s - record.first_s
    pace_s = streamed_s / record.output if record.output else SPEED.decode_ms / 1000
    left = record.arrival.shape.output_tokens - record.output
    return record.end_s + left * pace_s <= deadline_s


def judge(records: list[Record], told: dict[str, Any], end_s: float) -> Result:
    """Everything between the order and the end."""
    parts = by_tenant(records)
    deadline_s = float(told["deadline_s"])
    cut = [record for record in records if record.ended is Ended.CUT]
    entries = [
        entry for entry in told["after"]["data"] if entry.get("reclaim") == told["reclaim"].get("reclaim")
    ]
    done = entries[0].get("state") if entries else None
    after = work_between(records, SPEED, deadline_s + 2, end_s) / (
        SPEED.capacity_units_s * (end_s - deadline_s - 2)
    )
    verdicts = [
        at_most("streams cut that could have finished", sum(could_have_finished(record,
        deadline_s) for record in cut), 0),
        at_most("owner's refusals", refusals(parts["owner"]), 0),
        at_most("owner's streams cut or broken", sum(record.ended in (Ended.CUT,
        Ended.BROKEN) for record in parts["owner"]), 0),
        at_least("the reclaim stands in the record as done", int(done == "done"), 1),
        at_most("work afterwards / what the half that stays can do", after, 1.02),
        at_most("broken connections", sum(record.ended is Ended.BROKEN for record in records), 0),
    ]  # fmt: skip
    meanwhile = due(parts["owner"], BEFORE_S, deadline_s + 2)
    return Result("reclaim", verdicts, {
        "streams cut": len(cut),
        "flex preempted": named(told["history"], "preempted"),
        "state": done, "owner's TTFT meanwhile, ms": {"p50": ttft_ms(meanwhile, 0.5),
        "p99": ttft_ms(meanwhile, 0.99)},
        "not served": {name: codes(part) for name, part in parts.items()}, **conditions(records),
    })  # fmt: skip
