"""Budgets in Redis: however many ask at once, what is spent and what is held fit; whatever is said twice
counts once.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.cell.asks import BudgetFigure, BudgetFigures
from billing.cell.execute import execute
from billing.cell.replies import BudgetFull, BudgetHeld, BudgetUnknown, parse_budget_hold
from billing.cell.scripts import budget_hold_call, budget_publish_call
from billing.wire import redis_keys
from gateway.redis.pipe import RedisPipe
from tests.examples import examples

TENANT = "ten_1"
KEY, HELD = redis_keys.budget_keys(TENANT)


def figure(budget: str = "bud_1", limit: int = 100, spent: int = 0, **period: int) -> BudgetFigure:
    return BudgetFigure(
        budget=budget,
        limit=limit,
        spent=spent,
        from_ms=period.get("from_ms", 0),
        until_ms=period.get("until_ms", 0),
    )


def publish(
    client: redis.Redis, *budgets: BudgetFigure, recorded: Sequence[str] = (), at_ms: int = 1
) -> None:
    figures = BudgetFigures(at_ms=at_ms, budgets=list(budgets), all=True, recorded=list(recorded))
    execute(client, budget_publish_call(TENANT, figures))


def hold(client: redis.Redis, request_id: str, amount: int, *budgets: str) -> Any:
    call = budget_hold_call(TENANT, request_id, micro_usd=amount, budgets=budgets or ("bud_1",), cell="m1")
    return parse_budget_hold(execute(client, call))


def becomes(client: redis.Redis, request_id: str, amount: int) -> None:
    execute(client, budget_hold_call(TENANT, request_id, micro_usd=amount))


def held(client: redis.Redis, budget: str = "bud_1") -> int:
    return int(client.hget(KEY, f"{budget}:held") or 0)


@pytest.mark.parametrize("callers", [100, 500])
async def test_two_gateways_hold_no_more_than_there_is(
    valkey: redis.Redis, valkey_url: str, callers: int
) -> None:
    publish(valkey, figure(limit=1000, spent=200))
    pipes = [RedisPipe(valkey_url), RedisPipe(valkey_url)]
    replies = await asyncio.gather(
        *(
            pipes[n % 2].execute(
                *budget_hold_call(TENANT, f"r{n}", micro_usd=20, budgets=["bud_1"], cell="m1")
            )
            for n in range(callers)
        )
    )
    outcomes = Counter(type(parse_budget_hold(reply)).__name__ for reply in replies)
    assert outcomes == {"BudgetHeld": 40, "BudgetFull": callers - 40}
    assert held(valkey) == 800
    for pipe in pipes:
        await pipe.close()


def test_what_is_spent_refuses_for_the_period_and_what_is_held_for_a_moment(valkey: redis.Redis) -> None:
    publish(valkey, figure(spent=60, until_ms=10**13))
    assert isinstance(hold(valkey, "a", 30), BudgetHeld)
    busy, used_up = hold(valkey, "b", 20), hold(valkey, "c", 50)
    assert isinstance(busy, BudgetFull)
    assert isinstance(used_up, BudgetFull)
    assert (busy.busy, used_up.busy, used_up.until_ms) == (True, False, 10**13)
    ends = {"bud_1": 10**13, "bud_2": 10**13 + 1, "bud_3": 10**13}
    publish(valkey, *(figure(budget, spent=60, until_ms=until_ms) for budget, until_ms in ends.items()))
    longest = hold(valkey, "c", 50, "bud_1", "bud_2", "bud_3")
    assert isinstance(longest, BudgetFull)
    assert longest.until_ms == 10**13 + 1, "of used up ones it is the one that is so for longest"
    becomes(valkey, "a", 5)
    assert isinstance(hold(valkey, "b", 20), BudgetHeld)


def test_a_request_must_fit_each_of_its_budgets(valkey: redis.Redis) -> None:
    publish(valkey, figure("bud_1", 100), figure("bud_2", 10))
    full = hold(valkey, "a", 20, "bud_1", "bud_2")
    assert isinstance(full, BudgetFull)
    assert (full.budget, held(valkey), held(valkey, "bud_2")) == ("bud_2", 0, 0)
    assert isinstance(hold(valkey, "a", 10, "bud_1", "bud_2"), BudgetHeld)
    assert (held(valkey), held(valkey, "bud_2")) == (10, 10)


def test_a_lost_budget_admits_nobody(valkey: redis.Redis) -> None:
    assert isinstance(hold(valkey, "a", 1), BudgetUnknown)


def test_nothing_is_spent_of_a_period_that_billing_has_not_begun_yet(valkey: redis.Redis) -> None:
    publish(valkey, figure(spent=100, from_ms=1, until_ms=2))
    assert isinstance(hold(valkey, "a", 100), BudgetHeld)


def test_an_older_reading_lowers_nothing_and_brings_no_period_back(valkey: redis.Redis) -> None:
    publish(valkey, figure(spent=70, from_ms=5, until_ms=9), at_ms=2)
    publish(valkey, figure(spent=60, from_ms=5, until_ms=9), at_ms=1)
    publish(valkey, figure(spent=10, from_ms=1, until_ms=5), at_ms=1)
    assert valkey.hmget(KEY, "bud_1:spent", "bud_1:from") == ["70", "5"]
    publish(valkey, figure(spent=0, from_ms=9, until_ms=12), at_ms=3)
    assert valkey.hmget(KEY, "bud_1:spent", "bud_1:from") == ["0", "9"]


def test_a_removed_budget_is_forgotten(valkey: redis.Redis) -> None:
    publish(valkey, figure("bud_1"), figure("bud_2"))
    hold(valkey, "a", 10, "bud_1", "bud_2")
    publish(valkey, figure("bud_2"))
    assert {field.split(":")[0] for field in valkey.hkeys(KEY)} == {"bud_2"}
    publish(valkey, figure("bud_2", spent=10), recorded=["a"])
    assert (held(valkey, "bud_2"), valkey.hlen(HELD)) == (0, 0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["hold", "becomes", "recorded"]), st.integers(0, 5), st.integers(0, 60),
        st.booleans(),
    ),
    max_size=30,
)  # fmt: skip


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_held_is_the_sum_of_what_requests_hold(
    valkey_url: str, steps: list[tuple[str, int, int, bool]]
) -> None:
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        client.flushall()
        spent, holding, ended = 0, {}, set[str]()
        publish(client, figure(limit=100))
        for what, number, amount, twice in steps:
            request_id = f"r{number}"
            for _ in range(1 + twice):
                if what == "hold" and request_id not in ended:
                    fits = spent + sum(holding.values()) + amount <= 100
                    reply = hold(client, request_id, amount)
                    if request_id not in holding:
                        assert isinstance(reply, BudgetHeld) == fits
                        if fits:
                            holding[request_id] = amount
                elif what == "becomes":
                    becomes(client, request_id, amount)
                    if request_id in holding:
                        holding[request_id] = amount
                        if not amount:
                            del holding[request_id]
                elif what == "recorded":
                    spent += holding.pop(request_id, 0)
                    ended.add(request_id)
                    publish(client, figure(limit=100, spent=spent), recorded=[request_id])
            assert held(client) == sum(holding.values())
            assert client.hlen(HELD) == len(holding)
