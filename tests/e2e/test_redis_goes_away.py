"""Redis is killed, stands still or loses everything while real vLLM streams: the streams go on, and in the
end everything is settled once.
"""

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import redis

from billing.cell.scripts import SCRIPTS, script_of
from billing.wire import redis_keys
from tests.e2e.raw_caller import CHAT, END, LONG, ROUTES, TOKEN, RawCaller, body_of
from tests.e2e.request_counts import assert_recorded_as_counted
from tests.fixtures.gateway import wait_until
from tests.fixtures.redis_faults import Fault, frozen, killed
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.vllm

LEASE = 3
LOCAL_LEASE = {"policy": "local_lease", "requests": LEASE, "units": 100_000}
UNAVAILABLE = (503, "dependency_unavailable")
# What a gateway logs of each.
NOT_TAKEN = "settle goes to the journal"
# Longer than a gateway that has died counts as one among which a lease is divided.
DEAD_MS = 7_000


def ask(stack: Stack, key: str) -> httpx.Response:
    """A chat of one token."""
    with stack.gateway.client(key) as client:
        return client.post(CHAT, json=body_of(CHAT, "hi", tokens=1, stream=False))


def outcome(answer: httpx.Response) -> tuple[int, str]:
    """Its status, and the code if it is an error."""
    return answer.status_code, answer.json().get("error", {}).get("code", "")


def id_of(answer: httpx.Response) -> str:
    return str(answer.headers["x-request-id"])


@contextmanager
def streams(stack: Stack, key: str, tokens: int) -> Iterator[dict[str, RawCaller]]:
    """One on each route, by route; each has begun."""
    with ExitStack() as closing:
        callers = {
            path: closing.enter_context(RawCaller(stack, path, body_of(path, tokens=tokens), key))
            for path in ROUTES
        }
        for path, caller in callers.items():
            caller.read_until(TOKEN[path], 3)
        yield callers


def assert_go_on(callers: dict[str, RawCaller]) -> None:
    """New tokens come, on each."""
    for path, caller in callers.items():
        caller.read_more(TOKEN[path], 5)


def ids_of(callers: dict[str, RawCaller]) -> list[str]:
    return [caller.request_id for caller in callers.values()]


def assert_billed_as_produced(stack: Stack, key: str, ids: Iterable[str], ending: str) -> None:
    for request_id in ids:
        receipt = stack.receipt(request_id, key)
        assert receipt["ending"] == ending, receipt
        assert receipt["billed"] == receipt["produced"]
        assert receipt["billed"]["output"] > 0


def await_one_gateway(stack: Stack) -> None:
    """Until the gateway has the whole of a lease."""

    def alone() -> bool:
        seconds, _ = stack.redis.time()
        leases: Any = stack.redis.hvals(redis_keys.GATEWAYS)
        return sum(int(lease) > int(seconds) * 1000 - DEAD_MS for lease in leases) == 1

    wait_until(alone, "single gateway")


def await_service(stack: Stack, key: str) -> str:
    """Until a request is served; its id."""
    answers: list[httpx.Response] = []

    def served() -> bool:
        answers.append(ask(stack, key))
        return answers[-1].status_code == 200

    wait_until(served, "service", instead=lambda: [outcome(answer) for answer in answers])
    return id_of(answers[-1])


@pytest.mark.parametrize("fault", [killed, frozen])
def test_fault_34_streams_go_on_without_redis_and_the_policy_says_who_is_admitted(
    stack: Stack, fault: Fault
) -> None:
    tenant, key = stack.new_tenant()
    leased_tenant, leased = stack.new_tenant(redis_down=LOCAL_LEASE)
    await_one_gateway(stack)
    served, served_by_lease = [await_service(stack, key)], [await_service(stack, leased)]
    with streams(stack, key, LONG) as long, streams(stack, key, 12) as short:
        with fault(stack.valkey, stack.redis):
            refused = ask(stack, key)
            asked = [ask(stack, leased) for _ in range(LEASE + 1)]
            for path, caller in short.items():
                assert END[path] in caller.read_all()
            assert_go_on(long)
        served.append(await_service(stack, key))
        assert_go_on(long)
    assert outcome(refused) == UNAVAILABLE
    assert [outcome(answer) for answer in asked] == [(200, "")] * LEASE + [UNAVAILABLE]
    served_by_lease += [id_of(answer) for answer in asked[:LEASE]]
    assert_billed_as_produced(stack, key, ids_of(long), "client_disconnect")
    assert_billed_as_produced(stack, key, [*ids_of(short), *served], "complete")
    assert_billed_as_produced(stack, leased, served_by_lease, "complete")
    stack.assert_conserved()
    assert_recorded_as_counted(stack, tenant, [*ids_of(long), *ids_of(short), *served])
    assert_recorded_as_counted(stack, leased_tenant, served_by_lease)


def test_fault_35_flushall_ends_no_stream_and_gives_nobody_a_limit_twice(stack: Stack) -> None:
    tenant, key = stack.new_tenant()
    limited_tenant, limited = stack.new_tenant()
    stack.admin("PUT", "limits", tenant=limited_tenant, model="*", requests_per_day=2)
    used_up = [ask(stack, limited) for _ in range(3)]
    assert [answer.status_code for answer in used_up] == [200, 200, 429]
    stack.await_rest()
    with streams(stack, key, LONG) as long, ThreadPoolExecutor(2) as asking:
        stack.redis.flushall()
        # At once, before anything is there again.
        first, refused = asking.submit(ask, stack, key), asking.submit(ask, stack, limited)
        assert outcome(first.result()) == (200, "")
        assert outcome(refused.result()) == (429, "rate_limit_exceeded")
        wait_until(lambda: sorted(stack.open_ids()) == sorted(ids_of(long)), "the same streams again")
        assert_go_on(long)
    assert_billed_as_produced(stack, key, ids_of(long), "client_disconnect")
    assert not any(stack.admin("GET", f"requests/{request_id}").get("orphan") for request_id in ids_of(long))
    stack.assert_conserved()
    assert_recorded_as_counted(stack, tenant, [*ids_of(long), id_of(first.result())])
    assert_recorded_as_counted(stack, limited_tenant, [id_of(answer) for answer in used_up[:2]])


@pytest.fixture
def patient(stack: Stack) -> Iterator[None]:
    """A gateway that waits longer for Redis: when a caller has left, the engine is stopped and the settle
    sent before Redis counts as away.
    """
    usual, stack.gateway = (
        stack.gateway,
        stack.make_gateway(TAAS_REDIS_TIMEOUT_MS="4000", TAAS_GATEWAY_METRICS_PORT="0"),
    )
    try:
        stack.gateway.start()
        stack.await_served()
        yield
        assert stack.gateway.terminate() == 0
    finally:
        stack.gateway.stop()
        stack.gateway = usual


def test_fault_36_calls_of_unknown_outcome_are_sent_again_without_harm(stack: Stack, patient: None) -> None:
    """Reserves and settles are sent to a Redis that stands still. It runs them when it goes on, when nobody
    waits for them any more: again, or for the first time.
    """
    tenant, key = stack.new_tenant()
    # Over all gateways that count as alive.
    leased_tenant, leased = stack.new_tenant(redis_down=LOCAL_LEASE | {"requests": 100})
    served, served_by_lease = [await_service(stack, key)], [await_service(stack, leased)]
    with stack.redis.monitor() as monitor:
        with (
            streams(stack, key, LONG) as callers,
            ThreadPoolExecutor(2) as asking,
            frozen(stack.valkey, stack.redis),
        ):
            answers = [asking.submit(ask, stack, each) for each in (key, leased)]
            unsent = stack.gateway.log().count(NOT_TAKEN)
            for caller in callers.values():
                caller.leave()
            refused, by_lease = (answer.result() for answer in answers)
            wait_until(
                lambda: stack.gateway.log().count(NOT_TAKEN) > unsent, "settle that Redis did not take"
            )
        assert [outcome(refused), outcome(by_lease)] == [UNAVAILABLE, (200, "")]
        served_by_lease.append(id_of(by_lease))
        left = ids_of(callers)
        assert_billed_as_produced(stack, key, left, "client_disconnect")
        assert_billed_as_produced(stack, key, served, "complete")
        assert_billed_as_produced(stack, leased, served_by_lease, "complete")
        stack.assert_conserved()
        assert_recorded_as_counted(stack, tenant, [*left, *served])
        assert_recorded_as_counted(stack, leased_tenant, served_by_lease)
        ran: dict[str, list[str]] = {script: [] for script in SCRIPTS}

        def ran_again() -> bool:
            add_calls_that_ran(ran, monitor, stack)
            return (
                any(ran["settle"].count(request_id) > 1 for request_id in left)
                and ran["reserve"].count(id_of(by_lease)) > 1
            )

        # What is in the ledger already may be of the first calls; the journal is sent once a second.
        wait_until(ran_again, "calls that ran again", instead=lambda: ran)
    assert ran["reserve"].count(id_of(refused)) == 1
    assert id_of(refused) in ran["leave"]


def add_calls_that_ran(ran: dict[str, list[str]], monitor: redis.client.Monitor, stack: Stack) -> None:
    """Add the ids in the calls of each script that Redis has run since the last look, in their order."""
    stack.redis.echo("that is all")
    for call in monitor.listen():
        words = call["command"].split(" ", 2)
        if words[0] == "ECHO":
            return
        if words[0] == "FCALL":
            ids = dict.fromkeys(re.findall(r"req_[0-9a-f]+", words[2]))
            ran[script_of(words[1])] += ids
    raise AssertionError("Redis closed the connection")
