"""The memory for arriving bodies: never over its caps, given back on every ending, handed on in order."""

import asyncio
import random

import pytest

from gateway.errors import GatewayError, QuotaExceeded, ReceivingFull
from gateway.waiting.receiving import WAITING_PER_TENANT_MAX, ReceivePolicy, Receiving


def room(bytes_max: int = 100, bytes_per_tenant_max: int = 50, wait_s: float = 30.0) -> Receiving:
    return Receiving(ReceivePolicy(bytes_max, bytes_per_tenant_max, wait_s))


async def hold(receiving: Receiving, tenant: str, size_bytes: int, until: asyncio.Event) -> None:
    with receiving.share(tenant) as share:
        if not share.grow(size_bytes):
            await share.wait_to_grow(size_bytes)
        await until.wait()


async def turn() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_up_to_a_tenants_cap_and_not_one_byte_more() -> None:
    receiving = room()
    with receiving.share("a") as first, receiving.share("a") as second:
        assert first.grow(30)
        assert second.grow(20)
        assert not first.grow(31)
        with receiving.share("b") as other:
            assert other.grow(50)
            assert receiving.held_bytes == 100
            with receiving.share("c") as third:
                assert not third.grow(1)
    assert (receiving.held_bytes, receiving.held_by("a"), receiving.held_by("b")) == (0, 0, 0)


async def test_who_waits_goes_on_as_soon_as_there_is_room() -> None:
    receiving = room()
    ends = [asyncio.Event() for _ in range(3)]
    tasks = [asyncio.create_task(hold(receiving, "a", 50, end)) for end in ends]
    await turn()
    assert receiving.held_by("a") == 50
    for end, task in zip(ends, tasks, strict=True):
        end.set()
        await task
    assert receiving.held_bytes == 0


async def test_small_bodies_of_a_tenant_do_not_overtake_its_large_ones_nor_hold_up_others() -> None:
    receiving = room()
    first, rest = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(hold(receiving, "a", 40, first))]
    await turn()
    tasks += [asyncio.create_task(hold(receiving, "a", size, rest)) for size in (50, 1)]
    await turn()
    assert receiving.held_by("a") == 40
    tasks.append(asyncio.create_task(hold(receiving, "b", 50, rest)))
    await turn()
    assert receiving.held_by("b") == 50
    first.set()
    await turn()
    assert receiving.held_by("a") == 50
    rest.set()
    await asyncio.gather(*tasks)
    assert receiving.held_bytes == 0


@pytest.mark.parametrize(
    ("tenant", "error", "status"), [("a", QuotaExceeded, 429), ("b", ReceivingFull, 503)]
)
async def test_who_waits_in_vain_is_told_whose_room_is_used_up(
    tenant: str, error: type[GatewayError], status: int
) -> None:
    receiving = room(bytes_max=60, wait_s=0.01)
    end = asyncio.Event()
    holder = asyncio.create_task(hold(receiving, "a", 50, end))
    await turn()
    with pytest.raises(error) as refused:
        await hold(receiving, tenant, 20, end)
    assert refused.value.status == status
    assert (refused.value.retry_after_ms or 0) >= 1000
    assert refused.value.should_retry is not False
    assert receiving.held_bytes == 50
    end.set()
    await holder
    assert receiving.held_bytes == 0


async def test_a_tenant_cannot_have_any_number_wait() -> None:
    receiving = room()
    end = asyncio.Event()
    tasks = [asyncio.create_task(hold(receiving, "a", 50, end)) for _ in range(WAITING_PER_TENANT_MAX + 1)]
    await turn()
    with pytest.raises(QuotaExceeded):
        await hold(receiving, "a", 50, end)
    end.set()
    await asyncio.gather(*tasks)
    assert receiving.held_bytes == 0


async def test_whatever_is_cancelled_gives_back_what_it_held() -> None:
    receiving = room(bytes_max=200, wait_s=0.05)
    chance = random.Random(7)

    async def body(tenant: str) -> None:
        with receiving.share(tenant) as share:
            for _ in range(chance.choice((1, 1, 1, 3))):
                size_bytes = share.bytes + chance.randrange(1, 10)
                if not share.grow(size_bytes):
                    await share.wait_to_grow(size_bytes)
                assert receiving.held_bytes <= 200
                assert receiving.held_by(tenant) <= 50
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(body(chance.choice("abcdefgh"))) for _ in range(400)]
    for task in tasks:
        if chance.random() < 0.3:
            task.cancel()
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = {type(outcome) for outcome in outcomes}
    assert kinds <= {type(None), asyncio.CancelledError, QuotaExceeded, ReceivingFull}
    assert type(None) in kinds
    assert receiving.held_bytes == 0
    assert [receiving.held_by(tenant) for tenant in "abcdefgh"] == [0] * 8
    with receiving.share("a") as share:
        assert share.grow(50)
