"""Computes weights and capacity from measurements. Pure arithmetic: it knows neither engines nor how they
were measured.

A busy engine's time is taken to be a sum over its tokens: `seconds = a·uncached + b·cached + c·output`. A
work unit is one uncached input token, so its weight is 1000 milliunits, the others weigh b/a and c/a of that,
and the engine does 1/a units per second. The costs are those with the least squared relative error under 0 <
a, 0 ≤ b ≤ a, 0 < c: reading from the cache is never dearer than computing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

W_IN_MU: Final = 1000
# A system of equations whose pivot is this small beside its largest has no single answer: the mixes are too
# much alike.
_PIVOT_LEAST: Final = 1e-9


class FitFailed(ValueError):
    """The measurements do not separate the costs. The text says what is missing."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a busy engine did in some time, by its own usage."""

    mix: str
    seconds: float
    uncached: int
    cached: int
    output: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Milliunits per token, and milliunits per second. `cached_measured` false: nothing came from a cache, so
    cached input weighs as much as uncached.
    """

    w_in_mu: int
    w_cached_mu: int
    w_out_mu: int
    capacity_mu_s: int
    cached_measured: bool

    def work_mu(self, done: Measurement) -> int:
        """The work of its tokens."""
        return self.w_in_mu * done.uncached + self.w_cached_mu * done.cached + self.w_out_mu * done.output

    def error_of(self, done: Measurement) -> float:
        """The relative error of the prediction in its time: 0.05 = it predicts 5 % too much."""
        return self.work_mu(done) / self.capacity_mu_s / done.seconds - 1


def fit(measurements: Sequence[Measurement]) -> Fit:
    """The costs that explain the measurements best, as stored. Raises FitFailed."""
    used = [
        each for each in measurements if each.seconds > 0 and each.uncached + each.cached + each.output > 0
    ]
    if not any(each.uncached for each in used) or not any(each.output for each in used):
        raise FitFailed("nothing was measured: there are no input or no output tokens.")
    cached_measured = any(each.cached for each in used)
    # Rates: the right side is 1 for every row, so each counts by its relative error.
    rows = [
        tuple(count / each.seconds for count in (each.uncached, each.cached, each.output)) for each in used
    ]
    best: tuple[float, tuple[float, float, float]] | None = None
    for costs in _candidates(rows, cached_measured=cached_measured):
        a, b, c = costs
        if a <= 0 or c <= 0 or not 0 <= b <= a:
            continue
        miss = sum((1 - a * u - b * k - c * o) ** 2 for u, k, o in rows)
        if best is None or miss < best[0]:
            best = miss, costs
    if best is None:
        raise FitFailed("reading and writing cannot be told apart in what was measured; measure for longer.")
    a, b, c = best[1]
    # As stored: whole milliunits, and a token that is written always weighs something.
    w_out_mu = max(1, round(W_IN_MU * c / a))
    return Fit(W_IN_MU, round(W_IN_MU * b / a), w_out_mu, max(1, round(W_IN_MU / a)), cached_measured)


def _candidates(
    rows: Sequence[tuple[float, ...]], *, cached_measured: bool
) -> list[tuple[float, float, float]]:
    """The best costs inside the bounds of b, and on each bound. The best of those that meet all bounds is the
    optimum.
    """
    found = []
    if cached_measured:
        if (inside := _least_squares([(u, k, o) for u, k, o in rows])) is not None:
            found.append((inside[0], inside[1], inside[2]))
        if (free := _least_squares([(u, o) for u, _, o in rows])) is not None:
            found.append((free[0], 0.0, free[1]))
    if (full := _least_squares([(u + k, o) for u, k, o in rows])) is not None:
        found.append((full[0], full[0], full[1]))
    return found


def _least_squares(rows: Sequence[tuple[float, ...]]) -> list[float] | None:
    """x with the least Σ (1 − row·x)²; None if there is no single such x. Columns are scaled first, because
    rates differ by orders of magnitude.
    """
    width = len(rows[0])
    scale = [max(abs(row[at]) for row in rows) for at in range(width)]
    if min(scale) == 0:
        return None
    scaled = [[value / by for value, by in zip(row, scale, strict=True)] for row in rows]
    matrix = [
        [sum(row[i] * row[j] for row in scaled) for j in range(width)] + [sum(row[i] for row in scaled)]
        for i in range(width)
    ]
    for at in range(width):
        pivot = max(range(at, width), key=lambda i: abs(matrix[i][at]))
        if abs(matrix[pivot][at]) < _PIVOT_LEAST:
            return None
        matrix[at], matrix[pivot] = matrix[pivot], matrix[at]
        for i in range(width):
            if i != at:
                factor = matrix[i][at] / matrix[at][at]
                matrix[i] = [mine - factor * its for mine, its in zip(matrix[i], matrix[at], strict=True)]
    return [matrix[at][width] / matrix[at][at] / scale[at] for at in range(width)]
