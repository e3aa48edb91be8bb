"""The mixed run: every form of request on real vLLM, a third of the callers leave at some moment, the gateway is killed twice; then the books are read.

Σ produced by the engine = Σ billed + Σ absorbed, and one ledger entry for each request that was accepted.
"""

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from billing import redis_keys
from tests.e2e.raw_caller import ROUTES, RawCaller, body_of
from tests.fixtures.gateway import wait_until
from tests.fixtures.stack import INSTANCE, Stack

pytestmark = pytest.mark.vllm

REQUESTS = 300
CALLERS = 16
KILLS_AT = (REQUESTS // 3, 2 * REQUESTS // 3)
PROMPTS = ("Tell me of the sea.", "What is the wind?", "Name three colours. " * 5, "Who lives in the hills? " * 20)

ROWS = """
SELECT request_id, ending, billed_prompt, billed_output, absorbed_prompt, absorbed_output
FROM usage_event WHERE tenant = %s
"""
ENTRIES = "SELECT t.request_id FROM ledger_transaction t JOIN usage_event u USING (request_id) WHERE u.tenant = %s"


@dataclass
class Run:
    """What the callers saw."""

    tenant: str
    key: str
    started: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    seen_ids: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


def call(stack: Stack, run: Run, number: int) -> None:
    """One request; where the gateway is not there, dies before it answers, or knows no engine yet, it is asked again, as an SDK would."""
    dice = random.Random(number)
    path = ROUTES[number % len(ROUTES)]
    body = body_of(path, dice.choice(PROMPTS), tokens=dice.randint(4, 28), stream=dice.random() < 0.6)
    patience_s = dice.uniform(0, 1.5) if dice.random() < 1 / 3 else 60.0
    with run.lock:
        run.started += 1
    while not _ask(stack, run, path, body, patience_s):
        time.sleep(0.1)


def _ask(stack: Stack, run: Run, path: str, body: dict[str, Any], patience_s: float) -> bool:
    """Whether that is all: an answer, a part of one, or the caller's leaving."""
    try:
        with RawCaller(stack, path, body, run.key) as caller:
            outcome = caller.read_for(patience_s)
    except ConnectionError:
        return False
    with run.lock:
        run.outcomes[outcome] += 1
        if b" 200 " in caller.seen[:20] and b"\r\n\r\n" in caller.seen:
            run.seen_ids.add(caller.request_id)
    return outcome in {"answered", "left"} or bool(caller.seen and outcome == "cut")


def kill_twice(stack: Stack, run: Run) -> None:
    """In the middle of things: only where several requests are open."""
    for at in KILLS_AT:
        wait_until(lambda: run.started >= at and len(stack.open_ids()) >= CALLERS // 2, "moment to kill", 600)  # noqa: B023
        stack.gateway.kill()
        stack.gateway.start()


def drive(stack: Stack, run: Run) -> float:
    """The run itself, to where nothing is open; how long the callers took, in seconds."""
    began = time.monotonic()
    with ThreadPoolExecutor(CALLERS + 1) as pool:
        killing = pool.submit(kill_twice, stack, run)
        for done in [pool.submit(call, stack, run, number) for number in range(REQUESTS)]:
            done.result()
        killing.result()
    took_s = time.monotonic() - began
    stack.await_rest()
    return took_s


def test_every_token_of_a_mixed_run_is_billed_or_absorbed_and_every_request_is_in_the_ledger_once(stack: Stack) -> None:
    stack.assert_conserved()
    names = ("produced", "billed", "absorbed")
    before, late_before, ids_before = (
        {name: figures(stack, name) for name in names},
        reconciled(stack),
        accepted_ids(stack),
    )
    run = Run(*stack.new_tenant())
    took_s = drive(stack, run)
    report = stack.assert_conserved()
    moved = {name: difference(figures(stack, name), before[name]) for name in names}
    late = difference(reconciled(stack), late_before)
    rows = stack.sql(ROWS, run.tenant)
    endings = Counter(row[1] for row in rows)
    show(run, endings, moved, late, report, took_s)

    assert {row[0] for row in rows} == accepted_ids(stack) - ids_before
    assert run.seen_ids <= {row[0] for row in rows}
    entries = [row[0] for row in stack.sql(ENTRIES, run.tenant)]
    assert sorted(entries) == sorted(row[0] for row in rows)
    assert len(entries) == len(set(entries)) >= 200

    assert total(moved["billed"], moved["absorbed"]) == moved["produced"]
    assert moved["billed"] == (sum(row[2] for row in rows), sum(row[3] for row in rows))
    assert moved["absorbed"] == total((sum(row[4] for row in rows), sum(row[5] for row in rows)), late)
    assert set(endings) == {"complete", "client_disconnect", "gateway_died"}
    assert endings["client_disconnect"] > REQUESTS // 10
    assert all(row[4] == row[5] == 0 for row in rows if row[1] == "complete")


def accepted_ids(stack: Stack) -> set[str]:
    """Requests that ever held a reservation, by Redis: each leaves a tombstone for a quarter of an hour."""
    pattern = redis_keys.reservation(stack.cell, "*")
    return {str(key).rpartition(":")[2] for key in stack.redis.scan_iter(pattern, count=1000)}


def reconciled(stack: Stack) -> tuple[int, int]:
    """Prompt and generation that were absorbed as produced after a dead gateway's last checkpoint."""
    rows = stack.sql("SELECT absorbed_prompt, absorbed_output FROM usage_event WHERE kind = 'reconciliation'")
    return sum(row[0] for row in rows), sum(row[1] for row in rows)


def total(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


def difference(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] - other[0], one[1] - other[1]


def figures(stack: Stack, name: str) -> tuple[int, int]:
    """Prompt and generation of the instance, over all its epochs, by the audit."""
    (instance,) = [each for each in stack.audit()["instances"] if each["instance"] == INSTANCE]
    return instance[name]["prompt"], instance[name]["generation"]


def show(
    run: Run,
    endings: Counter[str],
    moved: dict[str, tuple[int, int]],
    late: tuple[int, int],
    report: Any,
    took_s: float,
) -> None:
    """The run on one screen (`-s`)."""
    print(f"\n{run.started} requests in {took_s:.0f} s, {CALLERS} at a time, gateway killed {len(KILLS_AT)} times")
    print(f"callers saw {dict(run.outcomes)}; the ledger has {dict(endings)}")
    table = moved | {"of these after a dead gateway's last checkpoint": late}
    for name, (prompt, generation) in table.items():
        print(f"{name:50}{prompt:>10} prompt{generation:>10} generation")
    print(f"{'residual':50}{report['residual_tokens']:>10}")
