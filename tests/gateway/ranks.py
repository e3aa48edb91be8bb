"""Whether two samples can be told apart: the Mann-Whitney test, by its normal approximation."""

import math
from collections import Counter
from collections.abc import Sequence


def mann_whitney_p(one: Sequence[float], other: Sequence[float]) -> float:
    """The probability that samples of one and the same distribution differ at least so much. Both need some
    twenty values.
    """
    both = sorted((*one, *other))
    seen = Counter(both)
    rank_of: dict[float, float] = {}
    before = 0
    for value in sorted(seen):
        rank_of[value] = before + (seen[value] + 1) / 2
        before += seen[value]
    n, m, total = len(one), len(other), len(both)
    statistic = sum(rank_of[value] for value in one) - n * (n + 1) / 2
    ties = sum(count**3 - count for count in seen.values())
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    return math.erfc(abs(statistic - n * m / 2) / math.sqrt(2 * variance))
