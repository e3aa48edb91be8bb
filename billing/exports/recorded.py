"""One recorded request, as exports have it. It owns what is said of a request outside; it reads nothing."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from billing.catalogue.money import Money
from billing.wire.tokens import TOKEN_KINDS


class Form(StrEnum):
    """The form of one request, for a file and for a sink."""

    CLOUDEVENTS = "cloudevents"
    OPENMETER = "openmeter"
    STRIPE = "stripe"
    LAGO = "lago"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """A request at its place in its tenant's chain. `tokens`: what is billed, by `TOKEN_KINDS`. `amount`:
    None if it is not priced. `corrects`: it says the amount of one that was recorded before without; its
    tokens were said then.
    """

    position: int
    recorded_ms: int
    request_id: str
    transaction_id: int
    corrects: bool
    tenant: str
    project: str
    key_id: str
    model: str
    class_: str
    contract: str | None
    line: str | None
    ending: str
    pricing: str
    ended_ms: int
    tokens: tuple[int, int, int, int]
    amount: Money | None

    @property
    def event_id(self) -> str:
        """The same whenever and however often it is sent."""
        return f"{self.request_id}.{self.transaction_id}" if self.corrects else self.request_id

    @property
    def in_doubt(self) -> bool:
        """Whether nobody knows what it used."""
        return self.pricing == "quarantined"

    def metered(self) -> list[tuple[str, int]]:
        """The kinds and counts of tokens that count towards a meter: each of a request once, and none of
        usage that is in doubt.
        """
        if self.corrects or self.in_doubt:
            return []
        return [(kind, count) for kind, count in zip(TOKEN_KINDS, self.tokens, strict=True) if count]


def rfc3339(at_ms: int) -> str:
    """To the millisecond, in UTC."""
    moment = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"
