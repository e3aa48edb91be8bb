"""Hashes that are copied from a template have the fields and the life of those that are written whole."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from billing.cell.replies import AlreadySettled, Reserved, Settled
from billing.cell.scripts import Tier
from tests.billing.cell.requests import CellRequest, limits_of

LIMITS = limits_of(requests=1_000, units_mu=10**9, concurrency=100)
# Of what is its own.
OWN = ("head", "lease", "at")
# So many that three of them are in one minute: the third is a copy.
MANY = 6


def request(client: redis.Redis, name: str, **more: Any) -> CellRequest:
    return CellRequest(client=client, request_id=name, tenant_limits=LIMITS, **more)


def opened(client: redis.Redis, prefix: str, **more: Any) -> list[CellRequest]:
    """So many requests of one kind, all admitted."""
    found = [request(client, f"{prefix}{number}", **more) for number in range(MANY)]
    assert all(isinstance(each.reserve(5_000), Reserved) for each in found)
    return found


def common(each: CellRequest) -> dict[str, str]:
    """The fields of its reservation that others have, too."""
    fields: Any = each.client.hgetall(each.reservation)
    return {name: value for name, value in fields.items() if name not in OWN}


def copies(client: redis.Redis) -> int:
    stats: Any = client.info("commandstats")
    return int(stats.get("cmdstat_copy", {"calls": 0})["calls"])


def refused_copies(client: redis.Redis) -> int:
    stats: Any = client.info("commandstats")
    return int(stats["cmdstat_copy"]["rejected_calls"])


def templates(client: redis.Redis) -> list[str]:
    found: Any = client.keys("*:like:*")
    return list(found)


@pytest.fixture
def may_not_copy(valkey: redis.Redis) -> Iterator[redis.Redis]:
    """A user as an earlier version's rules had it."""
    # A library of its own memory, before and after: for a minute it remembers that COPY was refused.
    valkey.function_flush("SYNC")
    valkey.execute_command("ACL", "SETUSER", "no-copy", "on", "nopass", "~*", "&*", "+@all", "-copy")
    where = valkey.get_connection_kwargs()
    with redis.Redis(
        host=where.get("host", ""), port=where.get("port", 0), db=where.get("db", 0), username="no-copy",
        password="any", decode_responses=True,
    ) as client:  # fmt: skip
        yield client
    valkey.acl_deluser("no-copy")
    valkey.function_flush("SYNC")


def test_a_copy_is_what_would_have_been_written(valkey: redis.Redis) -> None:
    valkey.config_resetstat()
    each = opened(valkey, "r")
    assert copies(valkey) > 0
    whole = common(each[0])
    assert len(whole) == 16
    assert all(common(other) == whole for other in each)
    assert {"ten", "gw", "tb"} <= whole.keys()
    assert all(valkey.pttl(other.reservation) > 6.9 * 86_400_000 for other in each)
    valkey.config_resetstat()
    replies = [other.settle(4_000) for other in each]
    assert copies(valkey) > 0
    for other, reply in zip(each, replies, strict=True):
        assert isinstance(reply, Settled)
        tombstone = {"state": "settled", "by": "settle", "event": reply.entry_id}
        assert valkey.hgetall(other.reservation) == tombstone
        assert 890_000 < valkey.pttl(other.reservation) <= 960_000
        assert isinstance(other.settle(4_000), AlreadySettled)


def test_kinds_of_requests_are_not_mixed(valkey: redis.Redis) -> None:
    for number in range(3):
        for name, more in {
            "plain": {},
            "elsewhere": {"candidates": (("i-2", "e-1"),)},
            "restarted": {"candidates": (("i-2", "e-2"),)},
            "wide": {"sequences": 2},
            "weighty": {"weight": 2},
            "flex": {"asked": Tier.FLEX},
        }.items():
            each = request(valkey, f"{name}{number}", **more)
            assert isinstance(each.reserve(), Reserved)
            fields = common(each)
            wanted = each.candidates[0], "f" if name == "flex" else "o", str(each.sequences), str(each.weight)
            found = (fields["inst"], fields["epoch"]), fields["cls"], fields["seq"], fields["wt"]
            assert found == wanted


def test_a_template_that_is_lost_is_made_again(valkey: redis.Redis) -> None:
    before = common(opened(valkey, "before")[0])
    assert templates(valkey)
    valkey.delete(*templates(valkey))
    each = opened(valkey, "after")
    assert all(common(other) == before for other in each)
    assert templates(valkey)
    assert all(valkey.pttl(name) > 0 for name in templates(valkey))


def test_a_user_that_may_not_copy_is_served(valkey: redis.Redis, may_not_copy: redis.Redis) -> None:
    before = common(opened(valkey, "before")[0])
    valkey.config_resetstat()
    each = opened(may_not_copy, "after")
    assert all(common(other) == before for other in each)
    assert all(isinstance(other.settle(4_000), Settled) for other in each)
    # It does not try each time.
    assert refused_copies(valkey) <= 2
