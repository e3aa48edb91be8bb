"""The JSON argument of each script of a cell, by name. Pure.

The scripts read the same names (`ask.…`). What is not required is absent where it is false. Work is in
milliunits. A later version may get the argument of an earlier one from a journal (`SettleAsk`, `LeaveAsk`):
those only ever get more fields, and the scripts must do without the new ones.
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import orjson


class ReserveAsk(TypedDict):
    """What one request asks for. The fields mean the same as in `billing.cell.scripts.Claim`."""

    request_id: str
    tenant: str
    cost_mu: int
    prompt_mu: int
    tokens: int
    asked: str
    sequences: int
    resumed: NotRequired[bool]
    restored: NotRequired[bool]
    can_resume: NotRequired[bool]
    prefers: NotRequired[str]
    cached_mu: NotRequired[int]


class ReserveTerms(TypedDict):
    """Under which limits a request asks: the second argument, alike for all requests of a gateway under the
    same limits. The third are the candidates. The script makes of each of these texts once what it needs, and
    then knows it. So neither may name the tenant: there may be more tenants than the script can know.
    """

    lease_ms: int
    tenant_limits: orjson.Fragment
    key_limits: orjson.Fragment
    cancels_per_minute: int
    may_on_demand: bool
    weight: int
    gateway: str
    wait_max: int


class CheckpointAsk(TypedDict):
    """The total use so far. `instance`, `epoch`: where the request has moved, '' if it has not. `pauses`: it
    gives its slot back.
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
    """The final cost, in work and in tokens. `cancelled`: the client disconnected before anything was
    produced.
    """

    request_id: str
    cost_mu: int
    tokens: int
    cancelled: NotRequired[bool]


class ReapAsk(TypedDict):
    """`watched_lease_ms`: the lease that was seen without renewal for long enough, 0 for none."""

    request_id: str
    watched_lease_ms: int


class LeaveAsk(TypedDict):
    """`refused`: its time to wait was over, which its contract's evidence counts. `withdrawn`: it is not
    served, also if it was admitted; a leave of an earlier version does not say that.
    """

    request_id: str
    refused: bool
    withdrawn: bool


class RefuseAsk(TypedDict):
    """The tenant whose contract's evidence counts a request that found no instance."""

    tenant: str


class GrantAsk(TypedDict):
    """`recount`: first recount what is in flight, as after a new plan."""

    recount: bool


class BucketRaise(TypedDict):
    """A bucket by its key; for each limit its kind, window in s, amount, and the least level that it must
    have.
    """

    key: str
    levels: Sequence[tuple[str, int, int, float]]


class ContractRaise(TypedDict):
    """A contract by its key, and the least levels that it must have."""

    key: str
    used_mu: float
    spilled_mu: float


class RebuildAsk(TypedDict):
    """`run`: mark the cell as intact in this run of the server; '' if more levels follow."""

    run: str
    buckets: Sequence[BucketRaise]
    contracts: Sequence[ContractRaise]


class BudgetAsk(TypedDict):
    """What a request holds of its tenant's budgets, in micro-dollars. `budgets`: it begins; without them what
    it holds changes to `amount`, and 0 ends it. `cell`: where its reservation is.
    """

    request_id: str
    amount: int
    budgets: NotRequired[list[str]]
    cell: NotRequired[str]


class BudgetFigure(TypedDict):
    """One budget in its current period, [from, until); `until_ms` 0: it has no end. In micro-dollars."""

    budget: str
    limit: int
    spent: int
    from_ms: int
    until_ms: int


class BudgetFigures(TypedDict):
    """What the ledger says, read at `at_ms`. `all`: the tenant has no other budgets. `recorded`: requests
    that are in the ledger, or that will never be: they hold nothing more.
    """

    at_ms: int
    budgets: list[BudgetFigure]
    all: bool
    recorded: list[str]


class IdempotencyAsk(TypedDict):
    """A request under an Idempotency-Key. `fingerprint`: of its route and body. `keys_max`: how many new keys
    its tenant may use in a day (UTC).
    """

    request_id: str
    fingerprint: str
    cell: str
    gateway: str
    keys_max: int


class IdempotencyEnd(TypedDict):
    """How the request ended that its key is bound to; without `ended` the key becomes free. `answer_ms`: how
    long its answer is stored; `bytes_max`: how many bytes of answers of the tenant are stored in a day.
    """

    request_id: str
    ended: NotRequired[str]
    answer_ms: NotRequired[int]
    bytes_max: NotRequired[int]
