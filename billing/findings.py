"""What an audit can find, as values. It owns their kinds and their JSON; it finds nothing itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from billing.wire.tokens import CounterPair


class FindingKind(StrEnum):
    """The kind of a finding. All but the first four need somebody's attention."""

    RECONCILED = "reconciled"
    NO_COUNTERS = "no_counters"
    COUNTER_LOST = "counter_lost"
    UNPRICED = "unpriced"
    QUARANTINED = "quarantined"
    UNREACHABLE = "unreachable"
    UNREADABLE = "unreadable"
    NOT_DRAINED = "not_drained"
    USAGE_REJECTED = "usage_rejected"
    USAGE_CONFLICT = "usage_conflict"
    RESIDUAL = "residual"
    REQUEST_UNKNOWN = "request_unknown"
    REQUEST_DIFFERS = "request_differs"
    LEDGER_UNBALANCED = "ledger_unbalanced"
    LEDGER_INCOMPLETE = "ledger_incomplete"
    LEDGER_MISPRICED = "ledger_mispriced"
    TOTALS_DIFFER = "totals_differ"
    CHAIN_BROKEN = "chain_broken"
    INVOICE_DIFFERS = "invoice_differs"
    AUDIT_LOG_DIFFERS = "audit_log_differs"
    NOT_FOR_SALE = "not_for_sale"
    CLOCKS_DIFFER = "clocks_differ"
    PROVIDER_DIFFERS = "provider_differs"


# What only an audit finds that reads everything back: what is stored is not what was recorded.
OF_FACTS: Final = frozenset(
    {
        FindingKind.LEDGER_UNBALANCED, FindingKind.LEDGER_INCOMPLETE, FindingKind.LEDGER_MISPRICED,
        FindingKind.TOTALS_DIFFER, FindingKind.CHAIN_BROKEN, FindingKind.AUDIT_LOG_DIFFERS,
        FindingKind.INVOICE_DIFFERS, FindingKind.PROVIDER_DIFFERS,
    }
)  # fmt: skip
# Something is not accounted for, or not as it was recorded.
WRONG: Final = OF_FACTS | {FindingKind.RESIDUAL, FindingKind.REQUEST_UNKNOWN, FindingKind.REQUEST_DIFFERS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding. `ids` are examples, 20 at most; `count` says how many there are. `since_ms`: since when,
    to the minute, where that is known. `about` tells it apart from others of its kind, where instance, epoch
    and message do not. `provider_usage`: a provider's figures beside ours.
    """

    kind: FindingKind
    message: str
    instance: str | None = None
    epoch: str | None = None
    tokens: CounterPair | None = None
    count: int | None = None
    ids: Sequence[str] = ()
    since_ms: int | None = None
    about: str | None = None
    provider_usage: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what does not apply."""
        parts: dict[str, Any] = {"kind": self.kind.value, "message": self.message}
        if self.kind is FindingKind.COUNTER_LOST:
            parts["counter_lost"] = True
        for name in ("instance", "epoch", "count", "since_ms"):
            if getattr(self, name) is not None:
                parts[name] = getattr(self, name)
        if self.tokens is not None:
            parts["tokens"] = pair_json(self.tokens)
        if self.provider_usage is not None:
            parts["provider_usage"] = dict(self.provider_usage)
        if self.ids:
            parts["ids"] = list(self.ids)
        return parts


def pair_json(pair: CounterPair) -> dict[str, int]:
    """`{"prompt", "generation"}`."""
    return {"prompt": pair.prompt, "generation": pair.generation}
