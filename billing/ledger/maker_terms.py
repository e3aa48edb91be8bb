"""What the makers of models get by their terms: which terms hold when, and what they give of tokens. It posts
nothing.

Terms hold from a whole hour on, for requests that end then or later, so that sums by hour say what is owed.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Row, select

from billing.catalogue.money import Money
from billing.moments import HOUR_MS
from billing.schema.books import maker_terms

K = TypeVar("K", bound=Hashable)
_WHOLE: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MakerTerms:
    """What the maker of a model gets from a moment on: a share (hundredths of a percent), or pico-dollars for
    each billed token.
    """

    model: str
    maker: str
    from_ms: int
    share_basis_points: int | None = None
    input_picousd: int | None = None
    output_picousd: int | None = None

    @classmethod
    def of(cls, row: Row[Any]) -> "MakerTerms":
        """A row of the table."""
        return cls(
            model=row.model,
            maker=row.maker,
            from_ms=row.from_hour * HOUR_MS,
            share_basis_points=row.share_basis_points,
            input_picousd=row.input_picousd,
            output_picousd=row.output_picousd,
        )


class TermsInTime:
    """All terms, as they hold from each moment on."""

    def __init__(self, connection: Connection) -> None:
        query = select(maker_terms).order_by(maker_terms.c.from_hour, maker_terms.c.version)
        found: defaultdict[str, dict[int, MakerTerms]] = defaultdict(dict)
        for row in connection.execute(query):
            found[row.model][row.from_hour * HOUR_MS] = MakerTerms.of(row)
        self._held = {model: list(terms.values()) for model, terms in found.items()}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._held)

    def spans(self, from_ms: int | None, until_ms: int | None) -> Iterator[tuple[int, int | None]]:
        """[from, until), as far as any hold, cut so that in each part the same ones do."""
        for begins_ms, ends_ms in pairwise([*self.edges_ms, None]):
            first_ms = max(begins_ms or 0, from_ms or 0)
            last_ms = min((each for each in (ends_ms, until_ms) if each is not None), default=None)
            if last_ms is None or first_ms < last_ms:
                yield first_ms, last_ms

    @property
    def edges_ms(self) -> list[int]:
        """When any begin, the first first."""
        return sorted({each.from_ms for held in self._held.values() for each in held})

    def at(self, model: str, moment_ms: int) -> MakerTerms | None:
        """Those that hold then."""
        held = self._held.get(model, [])
        index = bisect_right(held, moment_ms, key=lambda each: each.from_ms)
        return held[index - 1] if index else None

    def held_at(self, moment_ms: int) -> dict[str, MakerTerms]:
        """All that hold then, by model."""
        every = ((model, self.at(model, moment_ms)) for model in self._held)
        return {model: held for model, held in every if held is not None}

    def between(self, model: str, from_ms: int, until_ms: int) -> Iterator[tuple[int, int, MakerTerms]]:
        """Those that hold in [from, until), each with the part of it in which they do."""
        held = self._held.get(model, [])
        ends = [*(each.from_ms for each in held[1:]), until_ms]
        for each, end_ms in zip(held, ends, strict=False):
            begins_ms, ends_ms = max(from_ms, each.from_ms), min(until_ms, end_ms)
            if begins_ms < ends_ms:
                yield begins_ms, ends_ms, each


def share(terms: MakerTerms, paid: Fraction | int) -> Fraction:
    """Of what tenants pay, in the same unit; nothing where the maker has a price for each token."""
    return Fraction(paid * (terms.share_basis_points or 0), _WHOLE)


def of_tokens(row: Any, prompt: int, output: int, picousd: int) -> Fraction:
    """Of billed tokens and what they cost, by terms (any row with their columns): exact, in pico-dollars."""
    if row.share_basis_points is not None:
        return Fraction(picousd * row.share_basis_points, _WHOLE)
    return Fraction(prompt * row.input_picousd + output * row.output_picousd)


def rounded(parts: Mapping[K, Fraction]) -> dict[K, Money]:
    """Whole pico-dollars that add up to what all of it is, rounded once, half to even. Each differs from its
    own part by less than one; a part of nothing gets nothing.
    """
    found, whole, given = {}, Fraction(0), 0
    for name, part in parts.items():
        whole += part
        found[name] = Money(round(whole) - given)
        given = round(whole)
    return found
