"""How one call ended, as the caller saw it."""

from dataclasses import dataclass
from enum import StrEnum

from loadtest.workload import Call


class Ending(StrEnum):
    """`complete`: to its proper end. `left`: the caller went away on purpose. `refused`: an HTTP error.
    `error`: an error object in the stream. `broken`: the transport failed, or the stream ended without its
    end.
    """

    COMPLETE = "complete"
    LEFT = "left"
    REFUSED = "refused"
    ERROR = "error"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Times in seconds from the moment the call was due. `text_events` is at most the number of output
    tokens received.
    """

    call: Call
    ending: Ending
    request_id: str | None
    code: str | None
    first_text_s: float | None
    last_text_s: float | None
    took_s: float
    text_events: int
    usage: tuple[int, int] | None

    @property
    def seconds_per_token(self) -> float | None:
        """The mean gap between pieces of text, of streams with at least two."""
        if self.first_text_s is None or self.last_text_s is None or self.text_events < 2:
            return None
        return (self.last_text_s - self.first_text_s) / (self.text_events - 1)
