"""A cell whose levels were lost: nobody is admitted before they are there again, what is higher stays, and
what runs takes its place again.
"""

import pytest
import redis

from billing.cell import scripts
from billing.cell.execute import execute
from billing.cell.replies import LimitReached, Missing, Rebuilding, Replayed, Reserved, Settled, parse_reserve
from billing.cell.scripts import BucketLevel, ContractLevel, Tier
from billing.wire import redis_keys
from billing.wire.limits import Limits
from billing.wire.tokens import Tokens
from tests.billing.cell.plan import contract_field, flight, queue, set_room, sign, waits
from tests.billing.cell.requests import CELL, CellRequest, limits_of

LIMITS = limits_of(requests=60, units_mu=60_000)


def bucket(request: CellRequest, requests: float, units_mu: float, limits: Limits) -> BucketLevel:
    """The bucket of the request's tenant at these levels."""
    levels = [limit for limit in limits.all if limit.window_s > 0]
    return BucketLevel(request.keys.tenant_bucket, list(zip(levels, (requests, units_mu), strict=True)))


def rebuild(client: redis.Redis, *levels: BucketLevel | ContractLevel, run: str = "run-1") -> None:
    execute(client, scripts.rebuild_call(CELL, run, levels))


@pytest.mark.parametrize("asked", list(Tier))
def test_fault_35_nobody_is_admitted_before_levels_are_counted(valkey: redis.Redis, asked: Tier) -> None:
    sign(valkey, "acme", 1_000_000)
    valkey.delete(redis_keys.intact(CELL))
    request = CellRequest(client=valkey, request_id="r", asked=asked, wait_max=10)
    before = valkey.keys("*")
    assert isinstance(request.reserve(1_000), Rebuilding)
    assert sorted(valkey.keys("*")) == sorted(before)
    rebuild(valkey)
    assert isinstance(request.reserve(1_000), Reserved)


def test_fault_35_what_is_open_is_still_known(valkey: redis.Redis) -> None:
    request = CellRequest(client=valkey, request_id="r")
    request.reserve(1_000)
    valkey.delete(redis_keys.intact(CELL))
    assert isinstance(request.reserve(1_000), Replayed)
    assert isinstance(request.settle(500), Settled)


def test_fault_35_a_bucket_is_raised_to_what_the_ledger_says(valkey: redis.Redis) -> None:
    request = CellRequest(client=valkey, request_id="r", tenant_limits=LIMITS)
    rebuild(valkey, bucket(request, 60, 0, LIMITS))
    refused = request.reserve(1_000)
    assert isinstance(refused, LimitReached)
    assert refused.limit == "requests"
    rebuild(valkey, bucket(request, 0, 59_990, LIMITS))
    assert request.tenant_level("u") == pytest.approx(59_990, abs=1_000)


def test_what_is_higher_stays(valkey: redis.Redis) -> None:
    request = CellRequest(client=valkey, request_id="r", tenant_limits=LIMITS)
    request.reserve(50_000)
    rebuild(valkey, bucket(request, 0.5, 1_000, LIMITS))
    assert request.tenant_level("u") == pytest.approx(50_000, abs=2_000)
    assert request.tenant_level("r") == pytest.approx(1, abs=0.9)
    assert request.tenant_level("c") == 1


def test_a_contract_is_raised_and_one_without_numbers_is_not_made(valkey: redis.Redis) -> None:
    sign(valkey, "acme", 1_000, spill_mu_s=1_000, overflow="spill")
    mine, nobodys = (redis_keys.contract_bucket(CELL, name) for name in ("acme", "nobody"))
    rebuild(valkey, ContractLevel(mine, 900_000, 700_000), ContractLevel(nobodys, 5_000, 0))
    assert contract_field(valkey, "acme", "u") == 900_000
    assert contract_field(valkey, "acme", "sp") == 700_000
    assert not valkey.exists(nobodys)
    assert isinstance(
        CellRequest(client=valkey, request_id="r", asked=Tier.RESERVED).reserve(1), LimitReached
    )


def test_the_cell_is_intact_only_after_the_last_levels(valkey: redis.Redis) -> None:
    valkey.delete(redis_keys.intact(CELL))
    rebuild(valkey, run="")
    assert not valkey.exists(redis_keys.intact(CELL))
    rebuild(valkey, run="run-2")
    assert valkey.get(redis_keys.intact(CELL)) == "run-2"


@pytest.mark.parametrize(
    ("asked", "class_letter"),
    [(Tier.ON_DEMAND, "o"), (Tier.FLEX, "f"), (Tier.RESERVED, "r")],
)
def test_fault_35_what_runs_takes_its_place_again_and_is_charged_for_what_comes(
    valkey: redis.Redis, asked: Tier, class_letter: str
) -> None:
    limits = limits_of(requests=1, units_mu=60_000, concurrency=1)
    set_room(valkey, {"i-1": (1, 1)})
    sign(valkey, "acme", 1_000)
    request = CellRequest(client=valkey, request_id="r", asked=asked, tenant_limits=limits)
    request.reserve(5_000)
    valkey.flushdb()
    assert isinstance(request.checkpoint(Tokens(5, 0, 9), 9_000), Missing)
    set_room(valkey, {"i-1": (0, 0)})
    # Before anything else is there.
    assert isinstance(parse_reserve(execute(valkey, request.restore_command(9_000))), Reserved)
    sign(valkey, "acme", 1_000)
    rebuild(valkey, bucket(request, 1, 50_000, limits))
    assert flight(valkey) == {f"{class_letter}:i-1": 1}
    assert request.tenant_level("c") == 1
    assert request.tenant_level("u") <= 50_000
    assert isinstance(parse_reserve(execute(valkey, request.restore_command(9_000))), Replayed)
    settled = request.settle(12_000)
    assert isinstance(settled, Settled)
    assert not settled.orphan
    assert flight(valkey) == {}
    assert request.tenant_level("c") == 0
    # What is reserved is its contract's alone.
    most_mu = 50_000 if class_letter == "r" else 53_000
    assert most_mu - 3_000 < request.tenant_level("u") <= most_mu
    if class_letter == "r":
        assert 2_000 < contract_field(valkey, "acme", "u") <= 3_000


def test_who_waited_stands_in_line_anew(valkey: redis.Redis) -> None:
    set_room(valkey, {"i-1": (0, 0)})
    request = waits(valkey, "r")
    valkey.flushdb()
    set_room(valkey, {"i-1": (0, 0)})
    assert isinstance(request.reserve(1_000), Rebuilding)
    rebuild(valkey)
    request.reserve(1_000)
    assert queue(valkey, "acme") == ["r"]
