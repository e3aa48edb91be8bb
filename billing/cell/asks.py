"""What each script of a cell is asked, by name: the JSON that is its first argument. Pure.

The scripts read the same names (`ask.…`). Amounts of work are in milliunits. A script that a journal may hold
for a later version (`SettleAsk`, `LeaveAsk`) is only ever given more fields, and must do without them.
"""

from collections.abc import Sequence
from typing import TypedDict

import orjson


class ReserveAsk(TypedDict):
    """Who asks for what, under which limits. Meanings are those of `billing.cell.scripts.Claim`."""

    request_id: str
    lease_ms: int
    cost_mu: int
    prompt_mu: int
    tokens: int
    tenant: str
    tenant_limits: orjson.Fragment
    key_limits: orjson.Fragment
    cancels_per_minute: int
    asked: str
    may_on_demand: bool
    weight: int
    sequences: int
    gateway: str
    wait_max: int
    candidates: Sequence[tuple[str, str]]
    resumed: bool
    restored: bool
    can_resume: bool


class CheckpointAsk(TypedDict):
    """What was used so far, in all. `instance`, `epoch`: where it has moved, '' where it is; `pauses`: it
    gives its slot up.
    """

    request_id: str
    lease_ms: int
    cost_mu: int
    prompt: int
    cached: int
    output: int
    delivered: int
    instance: str
    epoch: str
    pauses: bool


class SettleAsk(TypedDict):
    """What the request has cost, in work and in tokens. `cancelled`: its caller left before anything was
    produced.
    """

    request_id: str
    cost_mu: int
    tokens: int
    cancelled: bool


class ReapAsk(TypedDict):
    """`watched_lease_ms`: the lease that was seen unrenewed for long enough, 0 for none."""

    request_id: str
    watched_lease_ms: int


class LeaveAsk(TypedDict):
    """`refused`: its time to wait was over, and its contract counts it."""

    request_id: str
    refused: bool


class RefuseAsk(TypedDict):
    """Whose contract counts a request that found no instance."""

    tenant: str


class GrantAsk(TypedDict):
    """`recount`: count anew what is in flight first, as after a new plan."""

    recount: bool


class BucketRaise(TypedDict):
    """A bucket by its key, and of each limit its kind, window in s, amount and the level that it must have
    at least.
    """

    key: str
    levels: Sequence[tuple[str, int, int, float]]


class ContractRaise(TypedDict):
    """A contract by its key, and what its levels must be at least."""

    key: str
    used_mu: float
    spilled_mu: float


class RebuildAsk(TypedDict):
    """`run`: the run of the server in which the cell is whole with these levels, '' where more are to
    come.
    """

    run: str
    buckets: Sequence[BucketRaise]
    contracts: Sequence[ContractRaise]
