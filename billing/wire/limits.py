"""Limits: what they count, over which window, and their names. Pure.

A limit is a kind, a window and an amount. `FIELDS` is the one table of the limits that can be set; the
catalogue, the admin API, the CLI, the gateway and the cell's scripts use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self, TypeAlias

import orjson

MINUTE_S: Final = 60
DAY_S: Final = 86_400
# The window of a concurrency limit: it counts open requests, and does not drain with time.
WHILE_OPEN: Final = 0
MU_PER_UNIT: Final = 1000


class LimitKind(StrEnum):
    """What refused a request: a limit of this kind, the contract, or a full queue (`room`)."""

    REQUESTS = "requests"
    UNITS = "units"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"
    CANCELS = "cancels"
    CONTRACT = "contract"
    ROOM = "room"


@dataclass(frozen=True, slots=True)
class Limit:
    """An amount of this kind in a window of `window_s` seconds. Work is in milliunits."""

    kind: LimitKind
    window_s: int
    amount: int


@dataclass(frozen=True, slots=True)
class LimitField:
    """A limit as people set it. `words`: what it counts, written after a number. `scale`: how much of its
    kind one unit of it is. `column`: its column name in a table.
    """

    name: str
    words: str
    column: str
    kind: LimitKind
    window_s: int

    @property
    def scale(self) -> int:
        """Work is set in whole units and counted in milliunits."""
        return MU_PER_UNIT if self.kind is LimitKind.UNITS else 1


FIELDS: Final = (
    LimitField("requests_per_minute", "requests per minute", "REQUESTS/MIN", LimitKind.REQUESTS, MINUTE_S),
    LimitField("units_per_minute", "work units per minute", "UNITS/MIN", LimitKind.UNITS, MINUTE_S),
    LimitField("tokens_per_minute", "tokens per minute", "TOKENS/MIN", LimitKind.TOKENS, MINUTE_S),
    LimitField("requests_per_day", "requests per day", "REQUESTS/DAY", LimitKind.REQUESTS, DAY_S),
    LimitField("units_per_day", "work units per day", "UNITS/DAY", LimitKind.UNITS, DAY_S),
    LimitField("tokens_per_day", "tokens per day", "TOKENS/DAY", LimitKind.TOKENS, DAY_S),
    LimitField("concurrency", "concurrent requests", "CONCURRENCY", LimitKind.CONCURRENCY, WHILE_OPEN),
)
NAMES: Final = tuple(each.name for each in FIELDS)

# The amounts of one entry, by the names of `FIELDS`; None or missing is no limit.
LimitEntry: TypeAlias = Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits of a tenant or a key on a model, in the order of `FIELDS`. `encoded`: the JSON that the
    cell's scripts read.
    """

    all: tuple[Limit, ...] = ()
    encoded: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = orjson.dumps([(limit.kind, limit.window_s, limit.amount) for limit in self.all])
        object.__setattr__(self, "encoded", text)

    @classmethod
    def of(cls, **amounts: int | None) -> Self:
        """By the names of `FIELDS`; None for no limit."""
        return cls.of_entries(amounts, None)

    @classmethod
    def of_entries(cls, own: LimitEntry | None, rest: LimitEntry | None) -> Self:
        """Merge a model's own entry with the one for all models: the own one wins, field by field."""
        limits = []
        for each in FIELDS:
            amounts = (entry.get(each.name) for entry in (own, rest) if entry)
            amount = next((amount for amount in amounts if amount is not None), None)
            if amount is not None:
                limits.append(Limit(each.kind, each.window_s, amount * each.scale))
        return cls(tuple(limits))

    def amount(self, kind: LimitKind, window_s: int) -> int | None:
        """The amount of one limit, None if there is none."""
        return next(
            (each.amount for each in self.all if (each.kind, each.window_s) == (kind, window_s)), None
        )
