"""What one caller saw of one request of a scenario. Owns the record, not how it is come by."""

from dataclasses import dataclass, field
from enum import StrEnum

from loadtest.scenarios.arrivals import Arrival

# Gap between two marks of a stream: fine enough for a rate over a second, coarse enough to keep hundreds of
# streams cheap.
MARK_S = 0.1


class Ended(StrEnum):
    """`complete`: to its proper end. `refused`: an HTTP error. `cut`: an error object in the stream, or no
    end. `broken`: the transport failed. `open`: it still ran, or waited, when the load was over.
    """

    COMPLETE = "complete"
    REFUSED = "refused"
    CUT = "cut"
    BROKEN = "broken"
    OPEN = "open"


@dataclass(slots=True, kw_only=True)
class Record:
    """Times in seconds after the load's start; token counts as the answer's usage told, or as they were seen
    to arrive.

    `marks` are (time, output tokens so far), at most one in `MARK_S`, the last one at the last token.
    """

    arrival: Arrival
    sent_s: float = 0.0
    first_s: float | None = None
    end_s: float | None = None
    ended: Ended = Ended.OPEN
    status: int | None = None
    code: str | None = None
    retry_after_ms: int | None = None
    work_class: str | None = None
    request_id: str | None = None
    prompt: int = 0
    cached: int = 0
    output: int = 0
    marks: list[tuple[float, int]] = field(default_factory=list)

    @property
    def ttft_s(self) -> float | None:
        """From the moment it was due, so that a late sender does not flatter the server."""
        return None if self.first_s is None else self.first_s - self.arrival.at_s

    @property
    def waiting_until_s(self) -> float:
        """When it stopped waiting for its first token: got it, or was told that there is none; infinity
        while it waits.
        """
        if self.first_s is not None:
            return self.first_s
        return float("inf") if self.end_s is None else self.end_s

    def see(self, now_s: float, tokens: int) -> None:
        """So many tokens have arrived just now."""
        if self.first_s is None:
            self.first_s = now_s
        self.output += tokens
        if len(self.marks) > 1 and now_s - self.marks[-2][0] < MARK_S:
            self.marks[-1] = now_s, self.output
        else:
            self.marks.append((now_s, self.output))
