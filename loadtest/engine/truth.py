"""What each request really cost the engine, to hold bills against: the part of the counters that it moved."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

# Enough for any test and for minutes of load; older entries go.
_REQUESTS_REMEMBERED_MAX = 50_000


@dataclass(slots=True, kw_only=True)
class RequestTruth:
    """`prompt`, `cached`, `output`: what the counters moved by (n samples count the prompt n times; no
    first token, no prompt).
    """

    route: str
    engine_id: str
    model: str
    prompt: int = 0
    cached: int = 0
    output: int = 0
    finishes: list[str] = field(default_factory=list)
    attempts: int = 1

    def as_json(self) -> dict[str, Any]:
        """`finish` is null while it runs, and one word where all samples ended alike."""
        finish = "+".join(dict.fromkeys(self.finishes)) or None
        return {
            "prompt": self.prompt, "cached": self.cached, "output": self.output, "finish": finish,
            "route": self.route, "engine_id": self.engine_id, "model": self.model, "attempts": self.attempts,
        }  # fmt: skip


class TruthBook:
    """Truths by request id: the X-Request-Id or `request_id` sent, else the random part of the id in the
    answer.
    """

    def __init__(self) -> None:
        self._truths: OrderedDict[str, RequestTruth] = OrderedDict()

    def open(self, request_id: str, route: str, engine_id: str, model: str) -> RequestTruth:
        """The entry that a request writes to; an id sent again adds to what is there."""
        truth = self._truths.get(request_id)
        if truth is not None:
            truth.attempts += 1
            return truth
        truth = self._truths[request_id] = RequestTruth(route=route, engine_id=engine_id, model=model)
        if len(self._truths) > _REQUESTS_REMEMBERED_MAX:
            self._truths.popitem(last=False)
        return truth

    def as_json(self) -> dict[str, Any]:
        return {request_id: truth.as_json() for request_id, truth in self._truths.items()}

    def clear(self) -> None:
        self._truths.clear()
