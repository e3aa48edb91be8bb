"""Who asks for what, when, and at which gateway: the schedules that scenarios are made of. No I/O; the same
for the same seed.

Times are seconds after the load's start. Nobody waits for an answer before asking again.
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from loadtest.workload import arrival_times

# What the chat template puts around one user message; prompts are made that much shorter.
TEMPLATE_TOKENS = 14
_TEXT = "tide wind salt foam gull reef wave sand dune cove surf mist rain bell mast sail keel rope port pier"
_WORDS = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class Shape:
    """Tokens of prompt and of answer; the answer is always as long as this."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request that is to be made. `tier` is its `service_tier`, `gateway` a position in the list of
    gateways.
    """

    at_s: float
    tenant: str
    shape: Shape
    tier: str = "auto"
    gateway: int = 0


def even(rate_per_s: float, begin_s: float, end_s: float) -> Iterator[float]:
    """Evenly spaced, the first half a gap after the beginning."""
    for number in range(round((end_s - begin_s) * rate_per_s)):
        yield begin_s + (number + 0.5) / rate_per_s


def poisson(rate_per_s: float, begin_s: float, end_s: float, seed: int) -> Iterator[float]:
    """Exponential gaps."""
    for at in arrival_times(rate_per_s, end_s - begin_s, seed):
        yield begin_s + at


def increasing(rate_from: float, rate_to: float, begin_s: float, end_s: float) -> Iterator[float]:
    """Evenly spaced at a rate that changes linearly. The n-th comes when the area under the rate is n +
    1/2.
    """
    length = end_s - begin_s
    slope = (rate_to - rate_from) / length
    for number in range(int(length * (rate_from + rate_to) / 2)):
        area = number + 0.5
        if abs(slope) < 1e-9:
            yield begin_s + area / rate_from
        else:
            yield begin_s + (math.sqrt(rate_from**2 + 2 * slope * area) - rate_from) / slope


def on_off(times: Iterable[float], on_s: float, off_s: float, begin_s: float = 0.0) -> Iterator[float]:
    """Only those that fall into an `on` phase; it begins with one."""
    return (at for at in times if (at - begin_s) % (on_s + off_s) < on_s)


def spread(shares: Sequence[float]) -> Iterator[int]:
    """Positions without end, each as often as its share, in the most even order: always the one that is
    furthest behind.
    """
    total = sum(shares)
    given = [0] * len(shares)
    for made in count(1):
        behind = [share * made / total - so_far for share, so_far in zip(shares, given, strict=True)]
        position = behind.index(max(behind))
        given[position] += 1
        yield position


def requests(
    tenant: str,
    times: Iterable[float],
    shape: Shape,
    *,
    tier: str = "auto",
    gateways: Sequence[float] = (1, 1),
    vary: float = 0.0,
) -> list[Arrival]:
    """One tenant's requests; `gateways` are the shares of each. `vary`: by what part at most an answer is
    shorter or longer than the shape says, at random. A crowd whose answers all end alike goes through an
    engine in step, and is computed in one burst after another.
    """
    chance = random.Random(tenant)
    return [
        Arrival(at, tenant, _varied(shape, vary, chance), tier, gateway)
        for at, gateway in zip(times, spread(gateways), strict=False)
    ]


def _varied(shape: Shape, vary: float, chance: random.Random) -> Shape:
    return (
        Shape(shape.input_tokens, max(1, round(shape.output_tokens * chance.uniform(1 - vary, 1 + vary))))
        if vary
        else shape
    )


def together(*parts: list[Arrival]) -> list[Arrival]:
    """All of them in their order."""
    return sorted((arrival for part in parts for arrival in part), key=lambda arrival: arrival.at_s)


def prompt(tokens: int, number: int) -> str:
    """A text that, in its template, has so many tokens for the simulated engine, and whose first block is
    like no other's.
    """
    chance = random.Random(number)
    begin = f"{number:08x}"  # two tokens
    return begin + "".join(
        f" {word}" for word in chance.choices(_WORDS, k=max(0, tokens - TEMPLATE_TOKENS - 2))
    )
