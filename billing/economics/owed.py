"""What is owed beside the prices of tokens: by tenants for capacity, to them for shortfalls, and to
the makers of models. None of it can be agreed yet, so each is nothing.
"""

from collections.abc import Sequence

from sqlalchemy import Connection

# [from, until) in ms since the epoch.
Period = tuple[int, int]


def capacity_charges(_connection: Connection, _contract: str, periods: Sequence[Period]) -> list[int]:
    """What the tenant owes for what the contract assigned in each period, used or not, in pico-dollars."""
    return [0] * len(periods)


def shortfall_credits(_connection: Connection, _contract: str, periods: Sequence[Period]) -> list[int]:
    """What the tenant gets back of that for what it was short of, in pico-dollars."""
    return [0] * len(periods)


def maker_shares(_connection: Connection, _period: Period) -> dict[tuple[str, str, str], int]:
    """What is owed to the model's maker by tenant, model and contract, in pico-dollars."""
    return {}
