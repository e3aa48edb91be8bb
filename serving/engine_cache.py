"""What a vLLM engine's prefix cache loses, from its events. Pure.

An engine tells of each block that it stores, or uses again, for which prompt that was, and of each block that
it gives up. A prompt without one of its blocks is cached no further than to where that block began.
"""

from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import msgspec
from msgspec import Struct

from billing.wire.cached_prompt import HASHES_MAX, CachedPrompt

# Some 300 bytes each.
_BLOCKS_MAX: Final = 500_000
# Prompts that share a block: those that used it last.
_PROMPTS_MAX: Final = 8
_ON_DEVICE: Final = (None, "GPU", "gpu")


class BlockStored(Struct, tag=True):
    """As vLLM writes it, without what is not read, such as the tokens."""

    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    block_size: int
    medium: str | None = None
    group_idx: int | None = None
    session_id: str | None = None


class BlockRemoved(Struct, tag=True):
    """These blocks are gone."""

    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(Struct, tag=True):
    """The cache is empty."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class Batch(Struct, array_like=True):
    """What one step of the engine changed."""

    _at: float
    events: list[Event]


_decoder: Final = msgspec.msgpack.Decoder(Batch)


def read_events(message: bytes) -> list[Event]:
    """Raises msgspec.MsgspecError if these are not events of vLLM's as it is now."""
    return _decoder.decode(message).events


class _Block(Struct):
    """`begins`: the token of its prompts at which it begins."""

    begins: int
    prompts: tuple[CachedPrompt, ...]


class CacheLosses:
    """Of one engine since it started, or since its events had a gap."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int | bytes, _Block] = OrderedDict()
        self._lost: dict[int, set[int]] = {}
        self._emptied = False

    def forget_all(self) -> None:
        """Events were missed: nothing is known of what is cached now."""
        self._blocks.clear()
        self._lost.clear()

    def take(self, events: Iterable[Event]) -> None:
        """These have happened, in this order."""
        for event in events:
            match event:
                case BlockStored(medium=medium, group_idx=group) if _is_first(medium, group):
                    self._store(event)
                case BlockRemoved(medium=medium, group_idx=group) if _is_first(medium, group):
                    self._remove(event.block_hashes)
                case AllBlocksCleared():
                    self.forget_all()
                    self._emptied = True
                case _:
                    pass

    def told(self) -> tuple[bool, list[tuple[int, list[int]]]]:
        """Whether the cache was emptied, and then the hashes that were lost since the last call, by seed, at
        most as many as a message holds.
        """
        emptied, self._emptied = self._emptied, False
        told, room = [], HASHES_MAX
        for seed, hashes in self._lost.items():
            if hashes and room:
                kept = list(hashes)[:room]
                told.append((seed, kept))
                room -= len(kept)
        self._lost.clear()
        return emptied, told

    def _store(self, event: BlockStored) -> None:
        prompt = _prompt(event.session_id)
        parent = None if event.parent_block_hash is None else self._blocks.get(event.parent_block_hash)
        if prompt is None or (parent is None and event.parent_block_hash is not None):
            return
        begins = 0 if parent is None else parent.begins + event.block_size
        for hashed in event.block_hashes:
            block = self._blocks.get(hashed)
            if block is None:
                self._blocks[hashed] = _Block(begins, (prompt,))
            else:
                others = tuple(each for each in block.prompts if each != prompt)
                block.prompts = (*others[1 - _PROMPTS_MAX :], prompt)
                self._blocks.move_to_end(hashed)
            begins += event.block_size
        if lost := self._lost.get(prompt.seed):
            lost.difference_update(hashed for hashed, ends in prompt.beginnings if ends <= begins)
        while len(self._blocks) > _BLOCKS_MAX:
            self._blocks.popitem(last=False)

    def _remove(self, hashes: Iterable[int | bytes]) -> None:
        for hashed in hashes:
            block = self._blocks.pop(hashed, None)
            if block is not None:
                for prompt in block.prompts:
                    self._lost.setdefault(prompt.seed, set()).update(
                        each for each, ends in prompt.beginnings if ends > block.begins
                    )


def _is_first(medium: str | None, group: int | None) -> bool:
    """Of several tiers and groups of layers, the ones that decide."""
    return medium in _ON_DEVICE and group in (None, 0)


@lru_cache(maxsize=1024)
def _prompt(text: str | None) -> CachedPrompt | None:
    try:
        return None if text is None else CachedPrompt.from_text(text)
    except ValueError:
        return None
