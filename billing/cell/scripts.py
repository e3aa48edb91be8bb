"""The scripts of a cell as Redis commands. It owns their texts and the order of their arguments; it opens no connection.

A command is a whole `EVALSHA …`, good for any client; `text_of(sha)` serves the client that is told NOSCRIPT.
`billing.cell.replies` reads what comes back.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final, Self, TypeAlias

from billing.wire import redis_keys
from billing.wire.tokens import Tokens

Command: TypeAlias = tuple[str | bytes | int, ...]

_UNLIMITED: Final = -1
# Where a checkpoint moves a request to that gives its place up.
NO_PLACE: Final = ("-", "")
_MU_PER_UNIT: Final = 1000
# A script is sent as one text: what all share, its own parts, itself.
_SHARED: Final = ("read_clock", "charge_contract", "pace_reading", "find_room", "leave_line", "grant_room")
_PARTS: Final = {
    "reserve": ("check_limits", "contract_line", "choose_class", "find_place", "stand_in_line"),
    "settle": ("check_state", "charge_buckets"),
    "grant": (),
    "refuse": (),
    "rebuild": (),
}


# Of a LIMIT: requests a minute, whole work units a minute, concurrency; None where it says nothing.
LimitFields: TypeAlias = tuple[int | None, int | None, int | None]
_NOTHING_SAID: Final[LimitFields] = (None, None, None)


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua text and the SHA by which Redis knows it."""

    text: str
    sha: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a bucket may hold: a minute's requests, a minute's work in milliunits, open requests. -1 means no limit."""

    requests: int = _UNLIMITED
    units_mu: int = _UNLIMITED
    concurrency: int = _UNLIMITED

    @classmethod
    def per_minute(cls, requests: int | None, units: int | None, concurrency: int | None) -> Self:
        """From a LIMIT of the projection: whole work units, None for no limit."""
        return cls(
            _UNLIMITED if requests is None else requests,
            _UNLIMITED if units is None else units * _MU_PER_UNIT,
            _UNLIMITED if concurrency is None else concurrency,
        )

    @classmethod
    def of_entries(cls, own: LimitFields | None, rest: LimitFields | None) -> Self:
        """What a model's own entry and the one for all models make together: the own one wins, field by field."""
        pairs = zip(own or _NOTHING_SAID, rest or _NOTHING_SAID, strict=True)
        requests, units, concurrency = (a if a is not None else b for a, b in pairs)
        return cls.per_minute(requests, units, concurrency)


class Asked(StrEnum):
    """The class that a request asks for. `auto`: reserved where there is a contract, else on-demand."""

    AUTO = "auto"
    RESERVED = "reserved"
    ON_DEMAND = "on_demand"
    FLEX = "flex"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who asks a cell for what, beside limits: by the tenant's contract there, or for a share of the rest.

    `candidates`: instance and epoch of those that could serve it, best first. `wait_max`: requests of this tenant that may wait
    in the class, 0 for one that will not wait. `cancels_per_minute`: requests left before anything was produced, -1 for no limit.
    `resumed`: it goes on with a request that was admitted, and no limit refuses it. `restored`: it is one that was admitted and runs on its only
    candidate, and Redis has lost its reservation. `goes_on`: as flex it could be stopped and go on elsewhere.
    `prompt_mu`: what reading its prompt costs.
    """

    tenant: str
    candidates: Sequence[tuple[str, str]]
    asked: Asked = Asked.AUTO
    on_demand: bool = True
    weight: int = 1
    sequences: int = 1
    gateway: str = ""
    wait_max: int = 0
    cancels_per_minute: int = _UNLIMITED
    resumed: bool = False
    goes_on: bool = False
    prompt_mu: int = 0
    restored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CellKeys:
    """The keys that one request touches."""

    request_id: str
    reservation: str
    tenant_bucket: str
    key_bucket: str
    open_requests: str
    usage_stream: str

    @classmethod
    def of(cls, cell: str, *, request_id: str, tenant: str, key_id: str, model: str) -> Self:
        """The keys of a request of this tenant and API key for this model."""
        return cls(
            request_id=request_id,
            reservation=redis_keys.reservation(cell, request_id),
            tenant_bucket=redis_keys.tenant_bucket(cell, tenant, model),
            key_bucket=redis_keys.key_bucket(cell, key_id, model),
            open_requests=redis_keys.open_requests(cell),
            usage_stream=redis_keys.usage_stream(cell),
        )

    @classmethod
    def of_reservation(cls, cell: str, request_id: str, tenant_bucket: str, key_bucket: str) -> Self:
        """The same from a reservation's fields `tb` and `kb`, for the reaper."""
        return cls(
            request_id=request_id,
            reservation=redis_keys.reservation(cell, request_id),
            tenant_bucket=tenant_bucket,
            key_bucket=key_bucket,
            open_requests=redis_keys.open_requests(cell),
            usage_stream=redis_keys.usage_stream(cell),
        )


@cache
def script(name: str) -> Script:
    """A script by its name, behind its parts; read once."""
    folder = Path(__file__).parent / "lua"
    text = "".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in (*_SHARED, *_PARTS[name], name))
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def scripts() -> tuple[Script, ...]:
    """Those that a gateway calls, for it to load when it connects."""
    return script("reserve"), script("settle"), script("grant"), script("refuse")


def text_of(sha: str) -> str:
    """The text behind a SHA; KeyError for one that is not ours."""
    return {each.sha: each.text for each in (*scripts(), script("rebuild"))}[sha]


def reserve_call(
    keys: CellKeys, *, lease_ms: int, cost_mu: int, tenant: Limits, key: Limits, claim: Claim, head: bytes, will: bytes
) -> Command:
    """Admit the request, let it wait, or refuse it. `head` (of admission) and `will` are of `billing.wire.usage_event`."""
    return (
        "EVALSHA", script("reserve").sha, 4,
        keys.reservation, keys.tenant_bucket, keys.key_bucket, keys.open_requests,
        keys.request_id, lease_ms, cost_mu,
        tenant.requests, tenant.units_mu, tenant.concurrency,
        key.requests, key.units_mu, key.concurrency,
        head, will, claim.tenant, claim.asked.value, int(claim.on_demand), claim.weight, claim.sequences, claim.gateway,
        claim.wait_max, claim.cancels_per_minute, 2 if claim.restored else int(claim.resumed), int(claim.goes_on), claim.prompt_mu,
        *(word for candidate in claim.candidates for word in candidate),
    )  # fmt: skip


def leave_call(keys: CellKeys, *, refused: bool = False) -> Command:
    """Take out a request that waits; it gives back a place that it was granted meanwhile. `refused`: its time was over, and its contract counts it."""
    return *_settle_keys(keys), "leave", keys.request_id, int(refused), 0


def refuse_call(cell: str, tenant: str) -> Command:
    """Count a request that found no instance as refused of its tenant's contract, if it has one."""
    return *_cell_keys("refuse", cell), tenant


def grant_call(cell: str, *, room_only: bool = False) -> Command:
    """Hand the room of the cell to those who wait; without `room_only` after counting anew what is in flight, as a plan wants it."""
    return *_cell_keys("grant", cell), "room" if room_only else "all"


@dataclass(frozen=True, slots=True)
class BucketLevel:
    """What a bucket must hold at least: requests, work in mu; and the limits by which it drains."""

    key: str
    requests: float
    units_mu: float
    limits: Limits


@dataclass(frozen=True, slots=True)
class ContractLevel:
    """What a contract's bucket must hold at least, and what of it spilled, in mu."""

    key: str
    used_mu: float
    spilled_mu: float


def rebuild_call(cell: str, run: str, levels: Sequence[BucketLevel | ContractLevel]) -> Command:
    """Raise levels to these; then, unless `run` is empty because more are to come, say that the cell is whole in this run of the server."""
    words: list[str | int] = []
    for each in levels:
        if isinstance(each, BucketLevel):
            words += (
                "b",
                each.key,
                repr(each.requests),
                repr(each.units_mu),
                each.limits.requests,
                each.limits.units_mu,
            )
        else:
            words += ("q", each.key, repr(each.used_mu), repr(each.spilled_mu), 0, 0)
    return *_cell_keys("rebuild", cell), run, *words


def checkpoint_call(
    keys: CellKeys,
    *,
    lease_ms: int,
    cost_mu: int,
    produced: Tokens,
    delivered_output: int,
    will: bytes,
    head: bytes = b"",
    moved_to: tuple[str, str] = ("", ""),
) -> Command:
    """Record usage so far and renew the lease. A new `head` follows a failover to another instance: `moved_to` it, in its epoch."""
    return (
        *_settle_keys(keys), "checkpoint", keys.request_id, lease_ms, cost_mu,
        produced.prompt, produced.cached, produced.output, delivered_output, will, head, *moved_to, 0,
    )  # fmt: skip


def settle_call(keys: CellKeys, *, cost_mu: int, event: bytes, cancelled: bool = False) -> Command:
    """End the request with its final cost and its whole event. `cancelled`: its caller left before anything was produced."""
    return (
        *_settle_keys(keys), "settle", keys.request_id, 0, cost_mu, 0, 0, 0, 0, event, b"", "", "", int(cancelled),
    )  # fmt: skip


def reap_call(keys: CellKeys, watched_lease_ms: int = 0) -> Command:
    """End the request as its last checkpoint left it, if its lease has passed or is still the one that was watched for long enough."""
    return *_settle_keys(keys), "reap", keys.request_id, watched_lease_ms


def _cell_keys(name: str, cell: str) -> Command:
    """A script of the whole cell: the shared parts look for its `open` in the fourth place."""
    return "EVALSHA", script(name).sha, 4, *((redis_keys.open_requests(cell),) * 4)


def _settle_keys(keys: CellKeys) -> Command:
    return (
        "EVALSHA", script("settle").sha, 5,
        keys.reservation, keys.tenant_bucket, keys.key_bucket, keys.open_requests, keys.usage_stream,
    )  # fmt: skip
