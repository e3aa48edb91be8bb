"""The scripts of a cell, and those of a tenant, as Redis commands. It owns how their texts are put together;
it opens no connection.

They are the functions of one library. A command is a complete `FCALL …` for any client; if the server does
not know the function, the client loads `library().text` and calls again. `billing.cell.asks` has the
arguments of the scripts, `billing.cell.replies` their replies.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from pathlib import Path
from typing import Final, Self, TypeAlias

import orjson

from billing.cell.asks import (
    BucketRaise,
    BudgetAsk,
    BudgetFigures,
    CheckpointAsk,
    ContractRaise,
    GrantAsk,
    IdempotencyAsk,
    IdempotencyEnd,
    LeaveAsk,
    ReapAsk,
    RebuildAsk,
    RefuseAsk,
    ReserveAsk,
    ReserveTerms,
    SettleAsk,
)
from billing.wire import redis_keys, reservation
from billing.wire.limits import Limit, Limits
from billing.wire.tokens import Tokens
from billing.wire.value import Value

Command: TypeAlias = tuple[str | bytes | int, ...]

UNLIMITED: Final = -1
# Of a library's name, before the version.
LIBRARY_PREFIX: Final = "taas_"
_FOLDER: Final = Path(__file__).parent / "lua"
# A file is a complete program; its first statement names the tables of functions that it is given. It
# returns such a table, or it is a script: then it returns the function that is called.
_NEEDS: Final = re.compile(r"^local ([\w,\s]+?) = \.\.\.$", re.MULTILINE)
SCRIPTS: Final = ("reserve", "settle", "checkpoint", "leave", "grant", "refuse", "reap", "rebuild")
# Not of a cell: a tenant's budgets and its Idempotency-Keys hold for all of its requests.
TENANT_SCRIPTS: Final = ("budget_hold", "budget_publish", "idempotency_claim", "idempotency_end")
# A table that is made here and not in a file.
_FIELDS: Final = "fields"


class Tier(StrEnum):
    """The service tier that a request asks for. `auto`: reserved if its tenant has a contract, else
    on-demand.
    """

    AUTO = "auto"
    RESERVED = "reserved"
    ON_DEMAND = "on_demand"
    FLEX = "flex"


class Claim(Value, frozen=True, kw_only=True):
    """What a request asks of a cell, apart from limits: capacity of its tenant's contract, or a share of the
    rest.

    `candidates`: instance and epoch of those that could serve it, best first. `wait_max`: how many requests
    of this tenant may wait in the class; 0: it does not wait. `cancels_per_minute`: how many requests may be
    cancelled before anything was produced, -1 for no limit. `resumed`: it resumes a request that was
    admitted, and no limit refuses it. `restored`: it was admitted and runs on its only candidate, but Redis
    has lost its reservation. `can_resume`: as flex it could be preempted and resumed elsewhere. `prompt_mu`:
    the cost of prefilling its prompt. `tokens`: its prompt and the most that it may produce; for a restored
    one, what it has used. `prefers`: the instance that should have some of its prompt cached, '' for none;
    `cached_mu`: the cost of prefilling that this saves.
    """

    tenant: str
    candidates: Sequence[tuple[str, str]]
    asked: Tier = Tier.AUTO
    on_demand: bool = True
    weight: int = 1
    sequences: int = 1
    gateway: str = ""
    wait_max: int = 0
    cancels_per_minute: int = UNLIMITED
    resumed: bool = False
    can_resume: bool = False
    prompt_mu: int = 0
    tokens: int = 0
    restored: bool = False
    prefers: str = ""
    cached_mu: int = 0


class CellKeys(Value, frozen=True):
    """The id of a request, and the Redis keys that its scripts are called with."""

    request_id: str
    open_requests: str
    tenant_bucket: str
    key_bucket: str

    @classmethod
    def of(cls, cell: str, *, request_id: str, tenant: str, key_id: str, model: str) -> Self:
        """The keys of a request of this tenant and API key for this model."""
        return cls(request_id, *_keys_of_all(cell, tenant, key_id, model))


@lru_cache(maxsize=8192)
def _keys_of_all(cell: str, tenant: str, key_id: str, model: str) -> tuple[str, str, str]:
    """The keys that all requests of this tenant and API key for this model have in common."""
    return (
        redis_keys.open_requests(cell),
        redis_keys.tenant_bucket(cell, tenant, model),
        redis_keys.key_bucket(cell, key_id, model),
    )


@dataclass(frozen=True, slots=True)
class Library:
    """All scripts as Redis functions: the text to load, and the name of each function. A changed text has
    other names, so that processes of two versions each call their own.
    """

    name: str
    text: str
    functions: dict[str, str]


@cache
def library() -> Library:
    """Each file is run once, when the library is loaded, with the tables that it needs."""
    parts: dict[str, str] = {}
    for name in (*SCRIPTS, *TENANT_SCRIPTS):
        _add(name, parts)
    body = "\n".join(f"local {name} = {text}" for name, text in parts.items())
    version = hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest()[:16]
    library_name = LIBRARY_PREFIX + version
    functions = {name: f"{library_name}_{name}" for name in (*SCRIPTS, *TENANT_SCRIPTS)}
    registered = "\n".join(
        [
            *(
                f"redis.register_function('{functions[name]}', function(keys, args)\n"
                f"  cell.enter(keys[1])\n  return {name}(keys, args)\nend)"
                for name in SCRIPTS
            ),
            *(f"redis.register_function('{functions[name]}', {name})" for name in TENANT_SCRIPTS),
        ]
    )
    return Library(library_name, f"#!lua name={library_name}\n{body}\n{registered}\n", functions)


def _source(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")


def _needs(source: str) -> list[str]:
    found = _NEEDS.search(source)
    return re.split(r",\s+", found[1]) if found else []


def _add(name: str, parts: dict[str, str]) -> None:
    if name in parts:
        return
    if name == _FIELDS:
        pairs = (f"['{field}'] = '{stored}'" for field, stored in reservation.FIELDS.items())
        parts[name] = "{" + ", ".join(pairs) + "}"
        return
    source = _source(name)
    needs = _needs(source)
    for need in needs:
        _add(need, parts)
    parts[name] = f"(function(...)\n{source}end)({', '.join(needs)})"


def script_of(function: str) -> str:
    """The name of the script behind a function; KeyError for one that is not ours."""
    return {made: name for name, made in library().functions.items()}[function]


def call(script: str, keys: Sequence[str], *arguments: str | bytes) -> Command:
    """A script by its name, with its keys and arguments."""
    return "FCALL", library().functions[script], len(keys), *keys, *arguments


def reserve_call(
    keys: CellKeys,
    *,
    lease_ms: int,
    cost_mu: int,
    tenant: Limits,
    key: Limits,
    claim: Claim,
    head: bytes,
    crash_event: bytes,
) -> Command:
    """Admit the request, let it wait, or refuse it. `head` (of admission) and `crash_event` are of
    `billing.wire.usage_event`.
    """
    ask = ReserveAsk(
        request_id=keys.request_id,
        tenant=claim.tenant,
        cost_mu=cost_mu,
        prompt_mu=claim.prompt_mu,
        tokens=claim.tokens,
        asked=claim.asked,
        sequences=claim.sequences,
    )
    if claim.resumed:
        ask["resumed"] = True
    if claim.restored:
        ask["restored"] = True
    if claim.can_resume:
        ask["can_resume"] = True
    if claim.prefers:
        ask["prefers"], ask["cached_mu"] = claim.prefers, claim.cached_mu
    terms = _terms_json(
        lease_ms, tenant.encoded, key.encoded, claim.cancels_per_minute, claim.on_demand,
        claim.weight, claim.gateway, claim.wait_max,
    )  # fmt: skip
    return call(
        "reserve",
        (keys.open_requests, keys.tenant_bucket, keys.key_bucket),
        orjson.dumps(ask),
        terms,
        orjson.dumps(claim.candidates),
        head,
        crash_event,
    )


@lru_cache(maxsize=8192)
def _terms_json(
    lease_ms: int,
    tenant_limits: bytes,
    key_limits: bytes,
    cancels_per_minute: int,
    may_on_demand: bool,
    weight: int,
    gateway: str,
    wait_max: int,
) -> bytes:
    """Alike for all requests under the same limits: encoded once here, and decoded once in the library."""
    terms = ReserveTerms(
        lease_ms=lease_ms,
        tenant_limits=orjson.Fragment(tenant_limits),
        key_limits=orjson.Fragment(key_limits),
        cancels_per_minute=cancels_per_minute,
        may_on_demand=may_on_demand,
        weight=weight,
        gateway=gateway,
        wait_max=wait_max,
    )
    return orjson.dumps(terms)


def leave_call(keys: CellKeys, *, refused: bool = False, withdrawn: bool = False) -> Command:
    """Remove a waiting request from its queue, and give back a slot that it was granted meanwhile. `refused`:
    its time was over, which its contract's evidence counts. `withdrawn`: it is not served, so if it was
    admitted without its gateway knowing, its reservation is given back, too.
    """
    ask = LeaveAsk(request_id=keys.request_id, refused=refused, withdrawn=withdrawn)
    return call("leave", (keys.open_requests,), orjson.dumps(ask))


def refuse_call(cell: str, tenant: str) -> Command:
    """Count a request that found no instance as refused in the evidence of its tenant's contract, if it has
    one.
    """
    ask = RefuseAsk(tenant=tenant)
    return call("refuse", (redis_keys.open_requests(cell),), orjson.dumps(ask))


def grant_call(cell: str, *, recount: bool = True) -> Command:
    """Grant the free slots of the cell. `recount`: first recount what is in flight, as after a new plan."""
    ask = GrantAsk(recount=recount)
    return call("grant", (redis_keys.open_requests(cell),), orjson.dumps(ask))


@dataclass(frozen=True, slots=True)
class BucketLevel:
    """The least that a bucket must hold: a level for each limit."""

    key: str
    levels: Sequence[tuple[Limit, float]]


@dataclass(frozen=True, slots=True)
class ContractLevel:
    """The least that a contract's bucket must hold, and how much of it spilled, in mu."""

    key: str
    used_mu: float
    spilled_mu: float


def rebuild_call(cell: str, run: str, levels: Sequence[BucketLevel | ContractLevel]) -> Command:
    """Raise levels to these. Then, unless `run` is empty because more follow, mark the cell as intact in this
    run of the server.
    """
    ask = RebuildAsk(
        run=run,
        buckets=[
            BucketRaise(
                key=each.key,
                levels=[(limit.kind, limit.window_s, limit.amount, level) for limit, level in each.levels],
            )
            for each in levels
            if isinstance(each, BucketLevel)
        ],
        contracts=[
            ContractRaise(key=each.key, used_mu=each.used_mu, spilled_mu=each.spilled_mu)
            for each in levels
            if isinstance(each, ContractLevel)
        ],
    )
    return call("rebuild", (redis_keys.open_requests(cell),), orjson.dumps(ask))


def checkpoint_call(
    keys: CellKeys,
    *,
    lease_ms: int,
    cost_mu: int,
    produced: Tokens,
    delivered_output: int,
    crash_event: bytes,
    head: bytes = b"",
    moved_to: tuple[str, str] = ("", ""),
    pauses: bool = False,
) -> Command:
    """Record usage so far and renew the lease. A new `head` follows a failover to another instance:
    `moved_to` is the instance and its epoch. `pauses`: the request was preempted and gives its slot back.
    """
    ask = CheckpointAsk(
        request_id=keys.request_id,
        lease_ms=lease_ms,
        cost_mu=cost_mu,
        prompt=produced.prompt,
        cached=produced.cached,
        output=produced.output,
        delivered=delivered_output,
        instance=moved_to[0],
        epoch=moved_to[1],
        pauses=pauses,
    )
    return call("checkpoint", (keys.open_requests,), orjson.dumps(ask), crash_event, head)


def settle_call(
    keys: CellKeys, *, cost_mu: int, tokens: int = 0, event: bytes, cancelled: bool = False
) -> Command:
    """End the request with its final cost and its whole event. `cancelled`: the client disconnected before
    anything was produced.
    """
    ask = SettleAsk(request_id=keys.request_id, cost_mu=cost_mu, tokens=tokens)
    if cancelled:
        ask["cancelled"] = True
    return call("settle", (keys.open_requests, keys.tenant_bucket, keys.key_bucket), orjson.dumps(ask), event)


def reap_call(cell: str, request_id: str, watched_lease_ms: int = 0) -> Command:
    """End the request as its last checkpoint left it, if its lease has passed, or is still the one that was
    watched for long enough.
    """
    ask = ReapAsk(request_id=request_id, watched_lease_ms=watched_lease_ms)
    return call("reap", (redis_keys.open_requests(cell),), orjson.dumps(ask))


def budget_hold_call(
    tenant: str, request_id: str, *, micro_usd: int, budgets: Sequence[str] = (), cell: str = ""
) -> Command:
    """Hold the most that a request may cost against these budgets of its tenant. Without budgets: what the
    request holds becomes this amount, 0 gives it back.
    """
    ask = BudgetAsk(request_id=request_id, amount=micro_usd)
    if budgets:
        ask["budgets"], ask["cell"] = list(budgets), cell
    return call("budget_hold", redis_keys.budget_keys(tenant), orjson.dumps(ask))


def budget_publish_call(tenant: str, figures: BudgetFigures) -> Command:
    """Write what the ledger says of a tenant's budgets."""
    return call("budget_publish", redis_keys.budget_keys(tenant), orjson.dumps(figures))


def idempotency_claim_call(tenant: str, key_hash: str, ask: IdempotencyAsk) -> Command:
    """Bind the tenant's Idempotency-Key to this request, unless it is bound already."""
    return call("idempotency_claim", redis_keys.idempotency_keys(tenant, key_hash), orjson.dumps(ask))


def idempotency_end_call(tenant: str, key_hash: str, end: IdempotencyEnd, answer: bytes = b"") -> Command:
    """Record how the request ended to which the key is bound, with its answer if that is stored; or free the
    key.
    """
    keys = redis_keys.idempotency_keys(tenant, key_hash)
    return call("idempotency_end", keys, orjson.dumps(end), answer)
