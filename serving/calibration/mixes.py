"""What the engine is asked during a measurement: mixes of request shapes, and their prompts. Pure; it sends
nothing.

Prompts are token ids, so that their length is exact for any model. A prompt that must not come from the
prefix cache has a cache salt of its own; one that must has one of four prefixes under the salt of this run.
So nothing of tenants or of earlier runs is found, and nothing is left for them to find.
"""

import random
from dataclasses import dataclass
from typing import Final

# Below, models keep their special tokens; above, no model that is served has fewer.
_IDS: Final = range(100, 1100)
_PREFIXES: Final = 4
# The prompt of most requests; a fraction of the context where that is small.
_LONG_TOKENS_MAX: Final = 512
CONTEXT_TOKENS_LEAST: Final = 128
# Up to here the mixes tell all there is to tell about the length of prompts.
LONG_CONTEXT_TOKENS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Shape:
    """Tokens of one kind of request; `output` is the mean."""

    cached: int
    uncached: int
    output: int


@dataclass(frozen=True, slots=True)
class Mix:
    """Requests of these shapes, in turn."""

    name: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Mixes:
    """`typical` finds how many sequences the targets allow and, with `fitted`, makes the fit; `held_back` is
    what the fit must predict.
    """

    typical: Mix
    fitted: tuple[Mix, ...]
    held_back: Mix


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    prompt: list[int]
    cache_salt: str
    output: int


def mixes_for(context_tokens: int) -> Mixes:
    """Mixes that fit the context. ValueError if hardly any does."""
    if context_tokens < CONTEXT_TOKENS_LEAST:
        raise ValueError(f"a context of {context_tokens} tokens is too small to measure with")
    long = min(_LONG_TOKENS_MAX, context_tokens // 4)
    short = max(4, long // 32)
    return Mixes(
        typical=Mix("typical", (Shape(long // 4, long // 4, long // 8),)),
        fitted=(
            Mix("reading", (Shape(0, long, max(2, long // 64)),)),
            Mix("rereading", (Shape(long * 3 // 2, 2 * short, max(2, long // 64)),)),
            Mix("writing", (Shape(0, short, long // 4),)),
            Mix("conversation", (Shape(long * 3 // 4, long // 8, long // 16),)),
        ),
        held_back=Mix(
            "held back", (Shape(0, long // 2, long // 32), Shape(long, long // 8, long // 12), Shape(0, short,
            long // 6))
        ),
    )  # fmt: skip


def long_mix(context_tokens: int, tokens_most: int) -> Mix | None:
    """Prompts of half the context, or of as much as there is time for. None if that is not longer than those
    of the other mixes. Each gets one output token: the question is whether such a long prompt costs what the
    fit predicts.
    """
    if context_tokens <= LONG_CONTEXT_TOKENS:
        return None
    tokens = min(context_tokens // 2, tokens_most)
    known = max(
        shape.cached + shape.uncached for mix in mixes_for(context_tokens).fitted for shape in mix.shapes
    )
    return Mix(f"prompts of {tokens}", (Shape(0, tokens, 1),)) if tokens > known else None


class Prompts:
    """Makes requests. The same seed makes the same requests; `salt` is this run's own."""

    def __init__(self, salt: str, seed: int) -> None:
        self._salt = salt
        self._random = random.Random(seed)  # noqa: S311 - it draws lengths and tokens, no secrets
        self._prefixes: dict[int, list[list[int]]] = {}
        self._made = 0

    def next(self, mix: Mix, *, midway: bool = False) -> Ask:
        """The next request of a mix. `midway`: as if it had been running for a while, so that many that
        start at once do not end at once.
        """
        shape = mix.shapes[self._made % len(mix.shapes)]
        self._made += 1
        output = self._random.randint(max(1, shape.output // 2), shape.output + shape.output // 2)
        if midway:
            output = self._random.randint(1, output)
        own = self._ids(shape.uncached)
        if not shape.cached:
            return Ask(own, f"{self._salt}-{self._made}", output)
        if shape.cached not in self._prefixes:
            self._prefixes[shape.cached] = [self._ids(shape.cached) for _ in range(_PREFIXES)]
        return Ask(self._random.choice(self._prefixes[shape.cached]) + own, self._salt, output)

    def _ids(self, count: int) -> list[int]:
        return self._random.choices(_IDS, k=count)
