"""What an engine's cache has lost, by its events as vLLM 0.32 writes them."""

from typing import Any

import msgspec
import pytest

from billing.wire.cached_prompt import CachedPrompt
from serving.engine_cache import CacheLosses, read_events

SEA = CachedPrompt(7, ((1, 100), (2, 200), (3, 300), (4, 400)))
# It begins as SEA does.
SHORE = CachedPrompt(7, ((1, 100), (2, 200), (9, 300)))
STONE = CachedPrompt(8, ((1, 100), (2, 200)))


def stored(
    prompt: CachedPrompt | None, *hashes: int, after: int | None = None, **fields: Any
) -> dict[str, Any]:
    return {
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": after, "token_ids": [5] * 128,
        "block_size": 128, "lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": None,
        "group_idx": 0, "session_id": None if prompt is None else prompt.to_text().decode(),
    } | fields  # fmt: skip


def removed(*hashes: int, **fields: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU", "group_idx": 0} | fields


def after(*events: dict[str, Any]) -> CacheLosses:
    losses = CacheLosses()
    losses.take(read_events(msgspec.msgpack.encode([1.5, events, 0])))
    return losses


def told(losses: CacheLosses) -> dict[int, set[int]]:
    emptied, hashes = losses.told()
    assert not emptied
    return {seed: set(lost) for seed, lost in hashes}


@pytest.mark.parametrize(
    ("gone", "lost"),
    [((13,), {3, 4}), ((12,), {2, 3, 4}), ((11,), {1, 2, 3, 4}), ((14,), {4}), ((99,), None)],
)
def test_a_prompt_is_cached_up_to_its_first_block_that_is_gone(
    gone: tuple[int, ...], lost: set[int] | None
) -> None:
    losses = after(stored(SEA, 11, 12, 13), stored(SEA, 14, after=13), removed(*gone))
    assert told(losses) == ({} if lost is None else {7: lost})
    assert told(losses) == {}, "it is told once"


def test_only_the_prompts_of_a_block_lose_it() -> None:
    losses = after(
        stored(SEA, 11, 12, 13), stored(SHORE, 23, after=12), stored(STONE, 31, 32), removed(13), removed(32)
    )
    assert told(losses) == {7: {3, 4}, 8: {2}}


def test_a_block_that_is_used_again_is_of_both_prompts() -> None:
    losses = after(stored(SEA, 11, 12), stored(SHORE, 11, 12), removed(12))
    assert told(losses) == {7: {2, 3, 4, 9}}


def test_what_was_stored_again_before_it_was_told_is_not_lost() -> None:
    losses = after(stored(SEA, 11, 12, 13), removed(11, 12, 13), stored(SEA, 11, 12))
    assert told(losses) == {7: {3, 4}}


def test_an_emptied_cache_is_told_as_such() -> None:
    losses = after(stored(SEA, 11), {"type": "AllBlocksCleared"})
    assert losses.told() == (True, [])
    assert losses.told() == (False, [])


def test_after_a_gap_nothing_is_said_of_what_was_before() -> None:
    losses = after(stored(SEA, 11))
    losses.forget_all()
    losses.take(
        read_events(msgspec.msgpack.encode([2.5, [removed(11), stored(SEA, 12, after=11), removed(12)], 0]))
    )
    assert told(losses) == {}


@pytest.mark.parametrize(
    "event",
    [
        removed(11, medium="CPU"),
        removed(11, group_idx=1),
        stored(None, 40),
        stored(None, 40, session_id="a caller's own"),
    ],
)
def test_other_tiers_other_layers_and_other_sessions_are_passed_over(event: dict[str, Any]) -> None:
    assert told(after(stored(SEA, 11), event, removed(40))) == {}


def test_tokens_are_not_read() -> None:
    (event,) = read_events(msgspec.msgpack.encode([1.5, [stored(SEA, 11)], 0]))
    assert not hasattr(event, "token_ids")


@pytest.mark.parametrize("message", [b"", b"\x90", msgspec.msgpack.encode([1.0, [{"type": "New"}]])])
def test_events_of_another_version_are_refused(message: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        read_events(message)
