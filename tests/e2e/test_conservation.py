"""The mixed run: every form of request on real vLLM, a third of the callers leave at some moment, a tenth of
the requests fail when the engine has worked on them, the engine stands still several times, the gateway is
killed twice. The audit is asked all the while; then the books are read. `TAAS_MIXED_REQUESTS=300` makes it
longer.

Σ produced by the engine = Σ billed + Σ absorbed, one ledger entry for each request that was accepted, and of
each what its engine says of it.
"""

import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from billing.wire import redis_keys
from tests.e2e.raw_caller import MESSAGES, ROUTES, RawCaller, body_of
from tests.e2e.request_counts import engine_counts, ledger_entries, recorded_counts
from tests.fixtures.gateway import wait_until
from tests.fixtures.stack import INSTANCE, MODEL, Stack

pytestmark = pytest.mark.vllm

REQUESTS = int(os.environ.get("TAAS_MIXED_REQUESTS", "60"))
CALLERS = 16
KILLS_AT = (REQUESTS // 3, 2 * REQUESTS // 3)
PAUSES_AT = tuple(REQUESTS * share // 12 for share in ((1, 3, 5, 7, 9) if REQUESTS >= 300 else (2, 6)))
PAUSE_S = 8.0
# On a slow machine a request takes a quarter of a minute.
PATIENCE_S = 600.0
PROMPTS = (
    "Tell me of the sea.",
    "What is the wind?",
    "Name three colours. " * 5,
    "Who lives in the hills? " * 20,
)

# vLLM makes the call, then finds that it is no object: 400, and nothing in the answer says what that took.
LATE_FAILURE = {
    "model": MODEL, "max_tokens": 64, "temperature": 0, "messages": [{"role": "user",
    "content": "Say hello to Bob."}],
    "tools": [{"name": "save", "input_schema": {"anyOf": [{"type": "string", "maxLength": 8}]}}],
    "tool_choice": {"type": "tool", "name": "save"},
}  # fmt: skip

ROWS = """
SELECT request_id, ending, billed_prompt, billed_output, absorbed_prompt, absorbed_output
FROM usage_event WHERE tenant = %s
"""


@dataclass(kw_only=True)
class Run:
    """What the callers saw."""

    tenant: str
    key: str
    started: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    seen_ids: set[str] = field(default_factory=set)
    failed_late: set[str] = field(default_factory=set)
    residuals: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def call(stack: Stack, run: Run, number: int) -> None:
    """One request; where the gateway is not there, dies before it answers, or knows no engine yet, it is
    asked again, as an SDK would.
    """
    dice = random.Random(number)
    if number % 10 == 7:
        _call_that_fails_late(stack, run)
        return
    path = ROUTES[number % len(ROUTES)]
    body = body_of(path, dice.choice(PROMPTS), tokens=dice.randint(4, 28), stream=dice.random() < 0.6)
    patience_s = dice.uniform(0, 1.5) if dice.random() < 1 / 3 else 60.0
    with run.lock:
        run.started += 1
    while not _ask(stack, run, path, body, patience_s):
        time.sleep(0.1)


def _call_that_fails_late(stack: Stack, run: Run) -> None:
    with run.lock:
        run.started += 1
    status = b""
    # A gateway that dies or has just started, and no room while the engine stands still.
    while status in {b"", b"429", b"503"}:
        with suppress(ConnectionError), RawCaller(stack, MESSAGES, LATE_FAILURE, run.key) as caller:
            caller.read_for(PATIENCE_S)
            status = caller.seen[9:12]
        time.sleep(0.1)
    with run.lock:
        run.outcomes["failed late" if status == b"400" else status.decode()] += 1
        run.failed_late.add(caller.request_id)


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
        wait_until(
            lambda: run.started >= at and len(stack.open_ids()) >= CALLERS // 2,  # noqa: B023
            "moment to kill",
            PATIENCE_S,
        )
        stack.gateway.kill()
        stack.gateway.start()


def pause_engine(stack: Stack, run: Run) -> None:
    """All processes of the engine at once, as a machine that swaps would."""
    server = psutil.Process(stack.engine_pid())
    for at in PAUSES_AT:
        wait_until(
            lambda: run.started >= at and len(stack.open_ids()) >= CALLERS // 2,  # noqa: B023
            "moment to pause",
            PATIENCE_S,
        )
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_S)
        for process in processes:
            process.send_signal(signal.SIGCONT)


def audit_until(stack: Stack, run: Run, over: threading.Event) -> None:
    """Again and again while requests come and go: whatever runs, is paused or has died, nothing is
    unexplained.
    """
    while not over.wait(0.5):
        run.residuals.append(stack.admin("GET", "audit")["residual_tokens"])


def drive(stack: Stack, run: Run) -> float:
    """The run itself, to where nothing is open; how long the callers took, in seconds."""
    began, over = time.monotonic(), threading.Event()
    with ThreadPoolExecutor(CALLERS) as pool, ThreadPoolExecutor(3) as beside:
        disturbing = [beside.submit(kill_twice, stack, run), beside.submit(pause_engine, stack, run)]
        auditing = beside.submit(audit_until, stack, run, over)
        try:
            for done in [pool.submit(call, stack, run, number) for number in range(REQUESTS)]:
                done.result()
            for each in disturbing:
                each.result()
        finally:
            over.set()
        auditing.result()
    took_s = time.monotonic() - began
    stack.await_rest()
    return took_s


def test_every_token_of_a_mixed_run_is_billed_or_absorbed_and_every_request_is_in_the_ledger_once(
    stack: Stack,
) -> None:
    stack.assert_conserved()
    names = ("produced", "billed", "absorbed")
    before, late_before, ids_before = (
        {name: figures(stack, name) for name in names},
        reconciled(stack),
        accepted_ids(stack),
    )
    tenant, key = stack.new_tenant()
    run = Run(tenant=tenant, key=key)
    took_s = drive(stack, run)
    report = stack.assert_conserved()
    moved = {name: difference(figures(stack, name), before[name]) for name in names}
    late = difference(reconciled(stack), late_before)
    rows = stack.sql(ROWS, run.tenant)
    endings = Counter(row[1] for row in rows)
    show(run, endings, moved, late, report, took_s)

    assert {row[0] for row in rows} == accepted_ids(stack) - ids_before
    assert run.seen_ids <= {row[0] for row in rows}
    entries = ledger_entries(stack, run.tenant)
    assert sorted(entries) == sorted(row[0] for row in rows)
    assert len(entries) == len(set(entries)) >= REQUESTS // 2

    assert total(moved["billed"], moved["absorbed"]) == moved["produced"]
    assert moved["billed"] == (sum(row[2] for row in rows), sum(row[3] for row in rows))
    assert moved["absorbed"] == total((sum(row[4] for row in rows), sum(row[5] for row in rows)), late)
    assert set(endings) == {"complete", "client_disconnect", "gateway_died", "refused_by_engine"}
    assert not any(run.residuals), run.residuals
    assert len(run.residuals) >= 3

    assert len(run.failed_late) == REQUESTS // 10
    for name in run.failed_late:
        (late_row,) = [row for row in rows if row[0] == name]
        assert late_row[1] in {"refused_by_engine", "gateway_died"}
    recorded = recorded_counts(stack, run.tenant)
    counted = {name: pair for name, pair in engine_counts(stack).items() if name in recorded}
    assert {name: recorded[name] for name in counted} == counted
    assert {name for name, tokens in recorded.items() if any(tokens)} <= set(counted)
    assert len(counted) >= REQUESTS // 2
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
    print(
        f"\n{run.started} requests in {took_s:.0f} s, {CALLERS} at a time, gateway killed {len(KILLS_AT)} "
        "times"
    )
    print(f"callers saw {dict(run.outcomes)}; the ledger has {dict(endings)}")
    table = moved | {"of these after a dead gateway's last checkpoint": late}
    for name, (prompt, generation) in table.items():
        print(f"{name:50}{prompt:>10} prompt{generation:>10} generation")
    print(f"{'residual':50}{report['residual_tokens']:>10}")
