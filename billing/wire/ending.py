"""How a request ended, who pays for it then, and why tokens are absorbed. It owns the names and what follows
from them; `billing.wire.attribution` does the arithmetic. Pure.
"""

from enum import StrEnum
from typing import Final, TypeAlias

# Names in events of the last version, in streams, journals and SQL. They are read as the new ones.
_EARLIER_NAMES: Final = {"gave_way": "preempted"}


class Ending(StrEnum):
    """How a request ended. Nobody pays for one that is in neither set below: its tokens are absorbed."""

    COMPLETE = "complete"
    CLIENT_DISCONNECT = "client_disconnect"
    CLIENT_STALLED = "client_stalled"
    TENANT_SUSPENDED = "tenant_suspended"
    DEADLINE = "deadline"
    OPERATOR_STOP = "operator_stop"
    PREEMPTED = "preempted"
    ENGINE_DIED = "engine_died"
    ENGINE_ERROR = "engine_error"
    GATEWAY_DIED = "gateway_died"
    GATEWAY_STOPPED = "gateway_stopped"
    PROTOCOL_ERROR = "protocol_error"
    REFUSED_BY_ENGINE = "refused_by_engine"

    @classmethod
    def _missing_(cls, value: object) -> "Ending | None":
        return cls(_EARLIER_NAMES[value]) if isinstance(value, str) and value in _EARLIER_NAMES else None


# The tenant pays for what was produced.
BILLED_ENDINGS: Final = frozenset(
    {Ending.COMPLETE, Ending.CLIENT_DISCONNECT, Ending.CLIENT_STALLED, Ending.TENANT_SUSPENDED}
)
# Nobody pays, and yet what was produced counts against the tenant's limits. Its caller got nothing for it; a
# limit that did not count it would let the caller ask for free work for ever.
CHARGED_UNBILLED: Final = frozenset({Ending.REFUSED_BY_ENGINE})


class OtherReason(StrEnum):
    """Why tokens are absorbed, if not for the ending of their request."""

    UNREAD = "unread"
    SHARED_PROMPT = "shared_prompt"
    CONTINUED = "continued"
    USAGE_ANOMALY = "usage_anomaly"
    CALIBRATION = "calibration"
    REPEATED = "repeated"


# Why nobody is billed for tokens that were produced.
AbsorbReason: TypeAlias = Ending | OtherReason
_OTHER_REASONS: Final = frozenset(OtherReason)


def absorb_reason(name: str) -> AbsorbReason:
    """The reason of this name. Raises ValueError if there is none."""
    return OtherReason(name) if name in _OTHER_REASONS else Ending(name)
