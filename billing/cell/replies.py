"""What the scripts of a cell answer, as values. It owns the reading of their replies, raw (bytes) or decoded (str), and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias


class LimitScope(StrEnum):
    """Whose limit refused."""

    TENANT = "tenant"
    KEY = "key"


class LimitKind(StrEnum):
    """Which limit refused."""

    REQUESTS = "requests"
    UNITS = "units"
    CONCURRENCY = "concurrency"


@dataclass(frozen=True, slots=True)
class Levels:
    """How full a bucket is. A level without a limit is 0. Units may exceed the limit: what was produced is charged, as debt."""

    requests: float
    units_mu: int
    open_requests: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """Admitted. Levels include this request."""

    now_ms: int
    tenant: Levels
    key: Levels


@dataclass(frozen=True, slots=True)
class Replayed:
    """The same request id is open already; nothing was charged again."""

    now_ms: int
    tenant: Levels
    key: Levels


@dataclass(frozen=True, slots=True)
class Refused:
    """Not admitted, nothing consumed. `retry_after_ms` is None where no waiting helps: the cost alone exceeds the limit."""

    now_ms: int
    tenant: Levels
    key: Levels
    scope: LimitScope
    limit: LimitKind
    retry_after_ms: int | None


@dataclass(frozen=True, slots=True)
class Renewed:
    """A checkpoint was recorded and the lease renewed."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class Stale:
    """A checkpoint came after a later one; nothing changed."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class Settled:
    """The event is in the usage stream, once. `orphan`: its reservation had been lost."""

    now_ms: int
    entry_id: str
    orphan: bool


@dataclass(frozen=True, slots=True)
class AlreadySettled:
    """This request id has ended before; nothing changed."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class StillLeased:
    """Its gateway is alive: not reaped."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no such reservation."""

    now_ms: int


ReserveReply: TypeAlias = Reserved | Replayed | Refused | AlreadySettled
CheckpointReply: TypeAlias = Renewed | Stale | AlreadySettled | Missing
SettleReply: TypeAlias = Settled | AlreadySettled
ReapReply: TypeAlias = Settled | AlreadySettled | StillLeased | Missing


class ReplyError(ValueError):
    """A reply that no version of the scripts gives."""


def parse_reserve(raw: Sequence[Any]) -> ReserveReply:
    """Read the reply of `reserve_call`."""
    status, now_ms = _text(raw[0]), raw[1]
    tenant, key = Levels(raw[2] / 1000, raw[3], raw[4]), Levels(raw[5] / 1000, raw[6], raw[7])
    if status == "reserved":
        return Reserved(now_ms, tenant, key)
    if status == "refused":
        retry_after_ms = raw[10] if raw[10] >= 0 else None
        return Refused(now_ms, tenant, key, LimitScope(_text(raw[8])), LimitKind(_text(raw[9])), retry_after_ms)
    if status == "replayed":
        return Replayed(now_ms, tenant, key)
    if status == "already_settled":
        return AlreadySettled(now_ms)
    raise ReplyError(f"reserve answered {status!r}")


def parse_checkpoint(raw: Sequence[Any]) -> CheckpointReply:
    """Read the reply of `checkpoint_call`."""
    return _CHECKPOINT[_known(raw, _CHECKPOINT)](raw[1])


def parse_settle(raw: Sequence[Any]) -> SettleReply:
    """Read the reply of `settle_call`."""
    status = _text(raw[0])
    if status in {"settled", "orphan"}:
        return Settled(raw[1], _text(raw[2]), status == "orphan")
    if status == "already_settled":
        return AlreadySettled(raw[1])
    raise ReplyError(f"settle answered {status!r}")


def parse_reap(raw: Sequence[Any]) -> ReapReply:
    """Read the reply of `reap_call`."""
    if _text(raw[0]) == "settled":
        return Settled(raw[1], _text(raw[2]), orphan=False)
    return _REAP[_known(raw, _REAP)](raw[1])


_CHECKPOINT: Final[dict[str, type[Renewed | Stale | AlreadySettled | Missing]]] = {
    "renewed": Renewed,
    "stale": Stale,
    "already_settled": AlreadySettled,
    "missing": Missing,
}
_REAP: Final[dict[str, type[AlreadySettled | StillLeased | Missing]]] = {
    "already_settled": AlreadySettled,
    "leased": StillLeased,
    "missing": Missing,
}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _known(raw: Sequence[Any], statuses: dict[str, Any]) -> str:
    status = _text(raw[0])
    if status not in statuses:
        raise ReplyError(f"settle answered {status!r}")
    return status
