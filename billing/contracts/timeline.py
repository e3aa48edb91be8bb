"""Whole numbers that change at moments and hold in between. Pure: it knows neither contracts nor pools.

Nothing changes between two moments of change, so what holds at each of them holds at every instant.
"""

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Self

# After every moment: what has no end ends here.
FOREVER_MS: Final = 253_402_300_800_000  # the beginning of the year 10000


@dataclass(frozen=True, slots=True)
class Span:
    """One value in [from, until)."""

    from_ms: int
    until_ms: int
    value: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """Moments in rising order and the value from each on; 0 before the first."""

    points: tuple[tuple[int, int], ...] = ()

    @classmethod
    def total(cls, spans: Iterable[Span]) -> Self:
        """The sum of all at each moment."""
        deltas = sorted(
            delta for span in spans if span.from_ms < span.until_ms for delta in _edges(span.from_ms,
            span.until_ms, span.value)
        )  # fmt: skip
        level, points = 0, []
        for at_ms, group in groupby(deltas, key=lambda delta: delta[0]):
            level += sum(change for _, change in group)
            points.append((at_ms, level))
        return cls(_joined(points))

    @classmethod
    def greatest(cls, spans: Iterable[Span]) -> Self:
        """The greatest of those that cover each moment, 0 where none does."""
        todo = sorted((span for span in spans if span.from_ms < span.until_ms), key=lambda span: span.from_ms)
        moments = sorted({edge for span in todo for edge in (span.from_ms, span.until_ms)})
        covering: list[tuple[int, int]] = []  # (−value, until), the greatest first
        points, index = [], 0
        for at_ms in moments:
            while index < len(todo) and todo[index].from_ms <= at_ms:
                heapq.heappush(covering, (-todo[index].value, todo[index].until_ms))
                index += 1
            while covering and covering[0][1] <= at_ms:
                heapq.heappop(covering)
            points.append((at_ms, -covering[0][0] if covering else 0))
        return cls(_joined(points))

    def at(self, moment_ms: int) -> int:
        """The value that holds then."""
        index = bisect_right(self.points, moment_ms, key=lambda point: point[0])
        return self.points[index - 1][1] if index else 0

    def spans(self, from_ms: int, until_ms: int = FOREVER_MS) -> Iterator[Span]:
        """The values of [from, until), without a gap; neighbours differ."""
        if from_ms >= until_ms:
            return
        start_ms, value = from_ms, self.at(from_ms)
        for at_ms, next_value in self.points[
            bisect_right(self.points, from_ms, key=lambda point: point[0]) :
        ]:
            if at_ms >= until_ms:
                break
            if next_value != value:
                yield Span(start_ms, at_ms, value)
                start_ms, value = at_ms, next_value
        yield Span(start_ms, until_ms, value)

    def least(self, from_ms: int, until_ms: int = FOREVER_MS) -> int:
        """The least value of [from, until), which is not empty."""
        return min(span.value for span in self.spans(from_ms, until_ms))

    def with_other(self, other: "Timeline", rule: Callable[[int, int], int]) -> "Timeline":
        """Combine both with a rule at each moment. The rule is also applied before the first moment, so it
        must make 0 of two zeros, or the caller must not look there.
        """
        moments = sorted({at_ms for at_ms, _ in (*self.points, *other.points)})
        return Timeline(_joined([(at_ms, rule(self.at(at_ms), other.at(at_ms))) for at_ms in moments]))


def _edges(from_ms: int, until_ms: int, value: int) -> Iterator[tuple[int, int]]:
    yield from_ms, value
    if until_ms < FOREVER_MS:
        yield until_ms, -value


def _joined(points: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Without points that change nothing."""
    kept: list[tuple[int, int]] = []
    for at_ms, value in points:
        if value != (kept[-1][1] if kept else 0):
            kept.append((at_ms, value))
    return tuple(kept)
