"""What gateways tell each other of the requests that they send, in one message at a time. Pure.

A message has the work of its gateway at each instance as it is now, and the beginnings of prompts that are
new there. It is bounded: what does not fit is left out, and each gateway knows less of the others' caches.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from gateway.routing.prompt_hashes import split_hash

# Of one message: some 50 kB.
HASHES_MAX: Final = 4_096
_NAMES_MAX: Final = 1_024

_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Count = Annotated[int, Meta(ge=0, le=2**40)]
_Seed = Annotated[int, Meta(ge=0, lt=2**48)]
_Hash = Annotated[int, Meta(ge=0, lt=2**32)]


class Sent(Struct, array_like=True):
    """Hashes of one seed that an engine was sent."""

    instance: _Name
    epoch: _Name
    seed: _Seed
    hashes: Annotated[list[_Hash], Meta(max_length=HASHES_MAX)]


class News(Struct):
    """One message. `loads`: by instance, open requests and prompt tokens that wait to be read."""

    gateway: _Name
    loads: Annotated[dict[_Name, tuple[_Count, _Count]], Meta(max_length=_NAMES_MAX)]
    prompts: Annotated[list[Sent], Meta(max_length=HASHES_MAX)]
    sessions: Annotated[list[Sent], Meta(max_length=HASHES_MAX)]


_decoder: Final = msgspec.json.Decoder(News)
_encoder: Final = msgspec.json.Encoder()


def read_news(message: bytes) -> News:
    """Raises msgspec.MsgspecError if it is not one."""
    return _decoder.decode(message)


class Outbox:
    """What this gateway has not told yet. `instances`: at which its work has changed."""

    def __init__(self) -> None:
        self._empty()

    def _empty(self) -> None:
        self.instances: set[str] = set()
        self._prompts: list[Sent] = []
        self._sessions: list[Sent] = []
        self._room = HASHES_MAX

    def add_prompt(self, instance: str, epoch: str, hashes: list[int]) -> None:
        """New beginnings of one prompt; the shortest first."""
        if hashes and self._room > 0:
            seed = split_hash(hashes[0])[0]
            told = [split_hash(hashed)[1] for hashed in hashes[: self._room]]
            self._prompts.append(Sent(instance, epoch, seed, told))
            self._room -= len(told)

    def add_session(self, instance: str, epoch: str, hashed: int) -> None:
        """A session whose requests go there from now on."""
        if self._room > 0:
            seed, rest = split_hash(hashed)
            self._sessions.append(Sent(instance, epoch, seed, [rest]))
            self._room -= 1

    def take(self, gateway: str, loads: dict[str, tuple[int, int]]) -> bytes:
        """The message, with `loads`; then nothing is left to tell."""
        news = News(gateway, loads, self._prompts, self._sessions)
        self._empty()
        return _encoder.encode(news)
