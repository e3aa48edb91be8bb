"""A prompt as a chain of hashes: two prompts that begin alike have the same first hashes. Pure.

A hash stands for all bytes from the beginning to the end of a block, so that an instance that has a hash has
all of those before it too. It begins with a seed: prompts of different seeds (model, adapter, tenant) have no
hash in common. What follows is a CRC of 32 bits, which costs a third of a cryptographic hash. A tenant can
make two of its own prompts collide; that sends one of them to the wrong cache, and nothing else.
"""

import zlib
from collections.abc import Sequence
from hashlib import blake2b
from itertools import takewhile
from typing import Any, Final

import orjson

# About 128 tokens: less is not worth a detour to another instance.
BLOCK_BYTES: Final = 512
# Later blocks are a sixteenth of what is before them. So the longest prompt has little more than a hundred
# hashes, and none is cut by more than 6 %.
_GROWTH: Final = 16
_PROMPT_BYTES_MAX: Final = 64 * 1024 * 1024
_CRC_BITS: Final = 32
_SEED_BYTES: Final = 6
# In the order in which chat templates write them.
_BEFORE_PROMPT: Final = ("tools", "system", "instructions")


def _block_ends() -> Sequence[int]:
    ends, end = [], 0
    while end < _PROMPT_BYTES_MAX:
        end += max(BLOCK_BYTES, end // _GROWTH)
        ends.append(end)
    return tuple(ends)


BLOCK_ENDS: Final = _block_ends()


def seed_of(*names: str) -> int:
    """What the hashes of these names begin with."""
    return int.from_bytes(blake2b("\0".join(names).encode(), digest_size=_SEED_BYTES).digest())


def prompt_bytes(body: dict[str, Any], prompt_param: str) -> bytes:
    """The part of a checked body that the engine makes its prompt of, in one form and one order."""
    parts = [orjson.dumps(body[name]) for name in _BEFORE_PROMPT if name in body]
    parts.append(orjson.dumps(body[prompt_param]))
    return b"".join(parts)


def chain(prompt: bytes, seed: int) -> list[int]:
    """The hash of each full block, with all that is before it."""
    rest, begins, crc, above = memoryview(prompt), 0, seed & 0xFFFFFFFF, seed << _CRC_BITS
    hashes = []
    for end in takewhile(len(prompt).__ge__, BLOCK_ENDS):
        crc = zlib.crc32(rest[begins:end], crc)
        hashes.append(above | crc)
        begins = end
    return hashes


def name_hash(name: bytes, seed: int) -> int:
    """The hash of a name that a caller gives to requests that belong together. `seed` is not one of
    prompts.
    """
    return seed << _CRC_BITS | zlib.crc32(name)


def split_hash(hashed: int) -> tuple[int, int]:
    """Seed and rest."""
    return hashed >> _CRC_BITS, hashed & 0xFFFFFFFF


def joined_hash(seed: int, rest: int) -> int:
    """The hash of these two."""
    return seed << _CRC_BITS | rest
