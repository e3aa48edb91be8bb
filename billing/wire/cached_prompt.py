"""What a gateway tells an engine of a prompt, and what that engine's worker tells gateways when its cache has
lost a part of it. Pure.

The engine repeats it with each block of the prompt that it caches (as the id of a session, which it takes as
it is). It holds no text: a seed, and of each beginning of the prompt a hash of 32 bits and where it ends.
"""

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

# More beginnings than the longest prompt has.
_BEGINNINGS_MAX: Final = 1024
_SEED: Final = struct.Struct(">Q")
# Of one message.
HASHES_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class CachedPrompt:
    """`beginnings`: the hash of each, the shortest first, and at which token it ends, by estimate."""

    seed: int
    beginnings: tuple[tuple[int, int], ...]

    def to_text(self) -> bytes:
        """For a header. The shortest beginnings, if there are more than an engine should repeat."""
        told = self.beginnings[:_BEGINNINGS_MAX]
        words = [part for each in told for part in each]
        raw = _SEED.pack(self.seed) + struct.pack(f">{len(words)}I", *words)
        return base64.urlsafe_b64encode(raw)

    @classmethod
    def from_text(cls, text: str) -> "CachedPrompt":
        """ValueError when it is not one."""
        try:
            raw = base64.urlsafe_b64decode(text)
            (seed,) = _SEED.unpack_from(raw)
            words = struct.unpack_from(f">{(len(raw) - _SEED.size) // 4}I", raw, _SEED.size)
        except (binascii.Error, struct.error) as exc:
            raise ValueError("not a cached prompt") from exc
        if len(words) % 2 or len(words) > 2 * _BEGINNINGS_MAX:
            raise ValueError("not a cached prompt")
        return cls(seed, tuple(zip(words[::2], words[1::2], strict=True)))


_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Seed = Annotated[int, Meta(ge=0, lt=2**48)]
_Hash = Annotated[int, Meta(ge=0, lt=2**32)]


_Hashes = Annotated[list[_Hash], Meta(max_length=HASHES_MAX)]


class Lost(Struct):
    """One message: the engine `instance` has these hashes no more, by seed; None if its cache is empty."""

    instance: _Name
    epoch: _Name
    hashes: Annotated[list[tuple[_Seed, _Hashes]], Meta(max_length=HASHES_MAX)] | None


_decoder: Final = msgspec.json.Decoder(Lost)
_encoder: Final = msgspec.json.Encoder()


def lost_message(instance: str, epoch: str, hashes: Sequence[tuple[int, list[int]]] | None) -> bytes:
    """As `read_lost` reads it."""
    return _encoder.encode(Lost(instance, epoch, None if hashes is None else list(hashes)))


def read_lost(message: bytes) -> Lost:
    """Raises msgspec.MsgspecError if it is not one."""
    return _decoder.decode(message)
