"""Which instance was sent which beginnings of prompts. Pure.

It guesses what the engines' prefix caches hold, from where requests were sent. It is bounded: the beginnings
that were used least recently are forgotten first, and of a prompt its end before its beginning. An instance
is known by its id and its epoch, because an engine that starts again has an empty cache.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

# Instances that have the same beginning: those that were sent it last.
_HOLDERS_MAX: Final = 8
# Instances and epochs ever seen; a new one has a new number.
_NAMES_MAX: Final = 10_000
# Of one entry, measured: two integers, the tuple of its holders, and its place in the dictionary.
ENTRY_BYTES: Final = 300


class PrefixIndex:
    """The index of one process. `entries_max` hashes at most."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._holders: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        self._numbers: dict[tuple[str, str], int] = {}
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._holders)

    def number(self, instance: str, epoch: str) -> int:
        """What stands for this engine in the index."""
        number = self._numbers.get((instance, epoch))
        if number is None:
            if len(self._numbers) >= _NAMES_MAX:
                self._numbers.clear()  # numbers are not used twice, so what they had is forgotten with them
            self._last_number += 1
            number = self._numbers[instance, epoch] = self._last_number
        return number

    def depths(self, hashes: Sequence[int]) -> dict[int, int]:
        """How many of the first hashes each engine has, by its number; those that have none are left out."""
        found: dict[int, int] = {}
        holders = self._holders
        for depth, hashed in enumerate(hashes):
            having = holders.get(hashed)
            if having is None:
                break
            for number in having:
                # Whoever lacks an earlier hash cannot use this one.
                if found.get(number, 0) == depth:
                    found[number] = depth + 1
        return found

    def holder(self, hashed: int) -> int | None:
        """The engine that was sent this last."""
        having = self._holders.get(hashed)
        return None if having is None else having[-1]

    def forget(self, hashes: Iterable[int], number: int) -> None:
        """This engine has these no more."""
        holders = self._holders
        for hashed in hashes:
            having = holders.get(hashed, ())
            if number in having:
                left = tuple(each for each in having if each != number)
                if left:
                    holders[hashed] = left
                else:
                    del holders[hashed]

    def forget_engine(self, instance: str, epoch: str) -> None:
        """Its cache is empty."""
        self._numbers.pop((instance, epoch), None)

    def learn(self, hashes: Iterable[int], number: int) -> list[int]:
        """This engine is sent all of these, the shortest beginning first. Returns what it did not have."""
        holders, new = self._holders, []
        for hashed in reversed(list(hashes)):  # the beginning last, so that it is forgotten last
            having = holders.get(hashed)
            if having is None:
                holders[hashed] = (number,)
                new.append(hashed)
                continue
            holders.move_to_end(hashed)
            if having[-1] != number:
                if number not in having:
                    new.append(hashed)
                others = [each for each in having if each != number]
                holders[hashed] = (*others[1 - _HOLDERS_MAX :], number)
        while len(holders) > self._entries_max:
            holders.popitem(last=False)
        new.reverse()
        return new
