"""Whole numbers divided so that their sum stays the same. Pure."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def divided(total: int, weights: Mapping[K, int]) -> dict[K, int]:
    """The total in proportion to the weights, which are not negative and not all 0: whole parts whose sum is
    the total. What rounding down leaves goes to those that it cut by the most, then by their order.
    """
    whole = sum(weights.values())
    if whole <= 0:
        raise ValueError("nothing to divide by")
    parts = {name: total * weight // whole for name, weight in weights.items()}
    cut = sorted(weights, key=lambda name: -(total * weights[name] % whole))
    for name in cut[: total - sum(parts.values())]:
        parts[name] += 1
    return parts
