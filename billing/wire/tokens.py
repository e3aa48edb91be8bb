"""Tokens and their weights: what is counted and what is absorbed. Pure. Counts are integers of 0 or more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from billing.wire.value import Value


class UsageEventError(ValueError):
    """Not a usage event: a field is missing, has another type, is negative, or the tokens do not balance."""


def check_counts(*values: int) -> None:
    """Raise unless each is an integer of at least 0."""
    for value in values:
        if type(value) is not int or value < 0:
            raise UsageEventError(f"not a count of tokens: {value!r}")


@dataclass(frozen=True, slots=True)
class CounterPair:
    """Tokens in the two kinds of an engine's own counters. A difference may be negative."""

    prompt: int = 0
    generation: int = 0

    def __add__(self, other: "CounterPair") -> "CounterPair":
        return CounterPair(self.prompt + other.prompt, self.generation + other.generation)

    def __sub__(self, other: "CounterPair") -> "CounterPair":
        return CounterPair(self.prompt - other.prompt, self.generation - other.generation)

    def at_least(self, other: "CounterPair") -> "CounterPair":
        """The greater of each kind."""
        return CounterPair(max(self.prompt, other.prompt), max(self.generation, other.generation))


NO_TOKENS: Final = CounterPair()


class Tokens(Value, frozen=True, omit_defaults=True):
    """Tokens of one request. Parts of `prompt`: `cached` came from the prefix cache, `written` was put into
    one that a provider charges for.
    """

    prompt: int
    cached: int
    output: int
    written: int = 0

    def __post_init__(self) -> None:
        check_counts(self.prompt, self.cached, self.output, self.written)
        if self.cached + self.written > self.prompt:
            raise UsageEventError(
                f"{self.cached} cached and {self.written} written tokens of a prompt of {self.prompt}"
            )

    def amount(self, *, input: int, cached_input: int, cache_write: int, output: int) -> int:
        """What they cost at these prices of one token of each kind, in the unit of the prices."""
        uncached = self.prompt - self.cached - self.written
        of_cache = self.cached * cached_input + self.written * cache_write
        return uncached * input + of_cache + self.output * output


# Kinds of tokens that have prices of their own.
TOKEN_KINDS: Final = ("uncached_input", "cached_input", "cache_write", "output")


def by_kind(prompt: Any, cached: Any, written: Any, output: Any) -> tuple[Any, Any, Any, Any]:
    """Counts, or columns of counts, in the order of `TOKEN_KINDS`: of a prompt what is in no cache apart."""
    return prompt - cached - written, cached, written, output


class Delivered(Value, frozen=True):
    """Tokens that were passed on to the caller."""

    output: int


class AbsorbedTokens(Value, frozen=True):
    """Tokens absorbed for one reason."""

    prompt: int
    output: int

    def __post_init__(self) -> None:
        check_counts(self.prompt, self.output)


class Absorbed(Value, frozen=True):
    """Tokens that nobody is billed for, and how many for each `AbsorbReason`; these add up to the totals."""

    prompt: int
    output: int
    reasons: Mapping[str, AbsorbedTokens]

    def __post_init__(self) -> None:
        check_counts(self.prompt, self.output)
        prompt = sum(part.prompt for part in self.reasons.values())
        output = sum(part.output for part in self.reasons.values())
        if (prompt, output) != (self.prompt, self.output):
            raise UsageEventError(
                f"reasons add up to {prompt}+{output}, absorbed are {self.prompt}+{self.output}"
            )


@dataclass(frozen=True, slots=True)
class Weights:
    """Work units per token, in milliunits (mu)."""

    version: int
    w_in_mu: int
    w_cached_mu: int
    w_out_mu: int

    def __post_init__(self) -> None:
        check_counts(self.version, self.w_in_mu, self.w_cached_mu, self.w_out_mu)

    def cost_mu(self, tokens: Tokens) -> int:
        """The work of these tokens in milliunits."""
        uncached = tokens.prompt - tokens.cached
        return uncached * self.w_in_mu + tokens.cached * self.w_cached_mu + tokens.output * self.w_out_mu
