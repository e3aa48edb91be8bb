"""The replies of a cell's scripts, as values. It only reads replies, raw (bytes) or decoded (str)."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, TypeAlias

from billing.wire.limits import LimitKind
from billing.wire.value import Value


class LimitScope(StrEnum):
    """Whose limit refused: the tenant's, the key's, or the cell's."""

    TENANT = "tenant"
    KEY = "key"
    CELL = "cell"


class Levels(Value, frozen=True):
    """The levels of a bucket, one for each limit of the call, in its order. A level may exceed its limit:
    what was produced is charged, as debt.
    """

    open_requests: int
    levels: tuple[float, ...] = ()


class Reserved(Value, frozen=True):
    """Admitted, on this instance. Levels include this request."""

    now_ms: int
    tenant: Levels
    key: Levels
    grant: "Grant"


class Grant(Value, frozen=True, kw_only=True):
    """How it was admitted, and why: `within_contract`, `spilled`, `room` or `waited`. Levels are the
    contract's, in mu; its rate is in mu per second.
    """

    class_: str
    contract: str | None
    instance: str
    epoch: str
    why: str
    level_before_mu: int
    level_after_mu: int
    rate_mu_s: int


class Waiting(Value, frozen=True):
    """No slot is free yet, and the request is in the queue. Reserve it again when it is woken, and before its
    lease ends.

    `pace_ms`: only the pace of prefills holds it up, so grant slots again after this time; 0: no need.
    """

    now_ms: int
    pace_ms: int = 0


class WaitingForContract(Value, frozen=True):
    """It is in its contract's queue, behind `before` requests. Its contract takes it in about `after_ms`. The
    first request asks again by itself; the others are woken when they become the first, and must also ask
    again before their lease ends.
    """

    now_ms: int
    after_ms: int
    before: int


class NoContract(Value, frozen=True):
    """It asked for reserved capacity, and its tenant has no contract here."""

    now_ms: int


class NoRight(Value, frozen=True):
    """Its tenant may not use on-demand or flex capacity, and no contract covers it."""

    now_ms: int


class Rebuilding(Value, frozen=True):
    """Redis has lost the cell's levels and billing has not recounted them yet. Retry in a moment."""

    now_ms: int


class LeftQueue(Value, frozen=True):
    """The request has left the queue (`dropped`), or was not in it. For an honest retry time: how many
    tenants wait, and the ms between grants.

    `pace_ms`: as of `Waiting`, for requests that could use the slot that it gave back.
    """

    now_ms: int
    dropped: bool
    tenants_waiting: int
    between_grants_ms: float
    pace_ms: int = 0


class Dropped(Value, frozen=True):
    """It waited and its gateway is gone. Nothing was produced, so there is no event."""

    now_ms: int


class Replayed(Value, frozen=True):
    """The same request id is open already; nothing was charged again."""

    now_ms: int
    tenant: Levels
    key: Levels
    grant: "Grant"


class LimitReached(Value, frozen=True, kw_only=True):
    """A limit, a contract or a full queue refused the request; nothing was charged. `retry_after_ms` is None
    if waiting does not help: its cost alone exceeds the limit, or the contract has no rate now.
    """

    now_ms: int
    tenant: Levels
    key: Levels
    scope: LimitScope
    limit: LimitKind
    window_s: int = 0
    retry_after_ms: int | None


class Renewed(Value, frozen=True):
    """A checkpoint was recorded and the lease renewed."""

    now_ms: int


class Stale(Value, frozen=True):
    """A checkpoint came after a later one; nothing changed."""

    now_ms: int


class Settled(Value, frozen=True):
    """The event is in the usage stream, once. `orphan`: its reservation had been lost."""

    now_ms: int
    entry_id: str
    orphan: bool
    pace_ms: int = 0


class AlreadySettled(Value, frozen=True):
    """This request id has already ended; nothing changed."""

    now_ms: int


class StillLeased(Value, frozen=True):
    """Its gateway is alive: not reaped."""

    now_ms: int


class Missing(Value, frozen=True):
    """There is no such reservation."""

    now_ms: int


ReserveReply: TypeAlias = (
    Reserved
    | Replayed
    | LimitReached
    | Waiting
    | WaitingForContract
    | NoContract
    | NoRight
    | Rebuilding
    | AlreadySettled
)
CheckpointReply: TypeAlias = Renewed | Stale | AlreadySettled | Missing
SettleReply: TypeAlias = Settled | AlreadySettled
ReapReply: TypeAlias = Settled | AlreadySettled | StillLeased | Missing | Dropped


class ReplyError(ValueError):
    """A reply that no version of the scripts gives."""


def parse_reserve(raw: Sequence[Any]) -> ReserveReply:
    """Read the reply of `reserve_call`."""
    status, now_ms = _text(raw[0]), raw[1]
    tenant, end = _levels(raw, 2)
    key, end = _levels(raw, end)
    if status == "reserved":
        return Reserved(now_ms, tenant, key, _grant(raw, end))
    if status == "refused":
        scope, limit, window_s, retry_after_ms = raw[end:]
        return LimitReached(
            now_ms=now_ms,
            tenant=tenant,
            key=key,
            scope=LimitScope(_text(scope)),
            limit=LimitKind(_text(limit)),
            window_s=window_s,
            retry_after_ms=retry_after_ms if retry_after_ms >= 0 else None,
        )
    if status == "replayed":
        return Replayed(now_ms, tenant, key, _grant(raw, end))
    if status == "later":
        return WaitingForContract(now_ms, raw[end], raw[end + 1])
    if status == "waiting":
        return Waiting(now_ms, raw[end])
    if status in _RESERVE:
        return _RESERVE[status](now_ms)
    raise ReplyError(f"reserve answered {status!r}")


def _grant(raw: Sequence[Any], start: int) -> Grant:
    class_, contract, instance, epoch, why = map(_text, raw[start : start + 5])
    before_mu, after_mu, rate_mu_s = raw[start + 5 :]
    return Grant(
        class_=class_,
        contract=contract or None,
        instance=instance,
        epoch=epoch,
        why=why,
        level_before_mu=before_mu,
        level_after_mu=after_mu,
        rate_mu_s=rate_mu_s,
    )


def _levels(raw: Sequence[Any], start: int) -> tuple[Levels, int]:
    """Behind their number; and where they end."""
    end = start + 1 + raw[start]
    return Levels(raw[start + 1], tuple([level / 1000 for level in raw[start + 2 : end]])), end


def parse_grant(raw: Sequence[Any]) -> int:
    """Its `pace_ms`, from the reply of `grant_call`."""
    return int(raw[4])


def parse_preempt_repeats(raw: Sequence[Any]) -> int:
    """From the same reply: how many preempted requests had not stopped in time and were signalled again."""
    return int(raw[5])


def parse_leave(raw: Sequence[Any]) -> LeftQueue:
    """Read the reply of `leave_call`."""
    return LeftQueue(raw[1], _text(raw[0]) == "dropped", raw[2], raw[3] / 1000, raw[4])


def parse_checkpoint(raw: Sequence[Any]) -> CheckpointReply:
    """Read the reply of `checkpoint_call`."""
    return _CHECKPOINT[_known(raw, _CHECKPOINT)](raw[1])


def parse_settle(raw: Sequence[Any]) -> SettleReply:
    """Read the reply of `settle_call`."""
    status = _text(raw[0])
    if status in {"settled", "orphan"}:
        return Settled(raw[1], _text(raw[2]), status == "orphan", raw[3])
    if status == "already_settled":
        return AlreadySettled(raw[1])
    raise ReplyError(f"settle answered {status!r}")


def parse_reap(raw: Sequence[Any]) -> ReapReply:
    """Read the reply of `reap_call`."""
    if _text(raw[0]) == "settled":
        return Settled(raw[1], _text(raw[2]), orphan=False, pace_ms=raw[3])
    return _REAP[_known(raw, _REAP)](raw[1])


_CHECKPOINT: Final[dict[str, type[Renewed | Stale | AlreadySettled | Missing]]] = {
    "renewed": Renewed,
    "stale": Stale,
    "already_settled": AlreadySettled,
    "missing": Missing,
}
_RESERVE: Final[dict[str, type[NoContract | NoRight | Rebuilding | AlreadySettled]]] = {
    "rebuilding": Rebuilding,
    "no_contract": NoContract,
    "no_right": NoRight,
    "already_settled": AlreadySettled,
}
_REAP: Final[dict[str, type[AlreadySettled | StillLeased | Missing | Dropped]]] = {
    "dropped": Dropped,
    "already_settled": AlreadySettled,
    "leased": StillLeased,
    "missing": Missing,
}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _known(raw: Sequence[Any], statuses: dict[str, Any]) -> str:
    status = _text(raw[0])
    if status not in statuses:
        raise ReplyError(f"the script answered {status!r}")
    return status


class BudgetHeld(Value, frozen=True):
    """The amount is held; or, for a request that holds nothing, nothing has changed."""

    now_ms: int


class BudgetFull(Value, frozen=True):
    """This budget has no room for the amount until `until_ms`, None for ever; or, if it is `busy`, as long as
    other requests hold what they do.
    """

    now_ms: int
    budget: str
    until_ms: int | None
    busy: bool


class BudgetUnknown(Value, frozen=True):
    """Redis has lost a budget, and billing has not written it again yet."""

    now_ms: int


def parse_budget_hold(raw: Sequence[Any]) -> BudgetHeld | BudgetFull | BudgetUnknown:
    """Read the reply of `budget_hold`."""
    status, now_ms = _text(raw[0]), int(raw[1])
    if status in {"used_up", "busy"}:
        return BudgetFull(now_ms, _text(raw[2]), int(raw[3]) or None, status == "busy")
    return BudgetUnknown(now_ms) if status == "unknown" else BudgetHeld(now_ms)


class KeyClaimed(Value, frozen=True):
    """The request is the first one under its Idempotency-Key."""

    now_ms: int


class KeyRunning(Value, frozen=True):
    """Nothing is known yet of the end of the first request. `since_ms`: when it came."""

    now_ms: int
    request_id: str
    cell: str
    gateway: str
    since_ms: int


class KeyEnded(Value, frozen=True):
    """How the first request ended, in its gateway's words (JSON), and its answer; empty if none is stored."""

    now_ms: int
    request_id: str
    ended: bytes
    answer: bytes


class KeyOfAnother(Value, frozen=True):
    """The first request under this key asked for something else."""

    now_ms: int
    request_id: str


class TooManyKeys(Value, frozen=True):
    """The tenant has used as many new keys today as it may."""

    now_ms: int
    retry_after_ms: int


ClaimReply: TypeAlias = KeyClaimed | KeyRunning | KeyEnded | KeyOfAnother | TooManyKeys


def parse_idempotency_claim(raw: Sequence[Any]) -> ClaimReply:
    """Read the reply of `idempotency_claim`. Its answer is bytes: the client must not decode replies."""
    status, now_ms = _text(raw[0]), int(raw[1])
    if status == "claimed":
        return KeyClaimed(now_ms)
    if status == "running":
        request_id, cell, gateway = map(_text, raw[2:5])
        return KeyRunning(now_ms, request_id, cell, gateway, int(raw[5]))
    if status == "ended":
        return KeyEnded(now_ms, _text(raw[2]), raw[3], raw[4])
    if status == "other":
        return KeyOfAnother(now_ms, _text(raw[2]))
    if status == "too_many":
        return TooManyKeys(now_ms, int(raw[2]))
    raise ReplyError(f"idempotency_claim answered {status!r}")
