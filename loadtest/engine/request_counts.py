"""`/taas/request_counts`: what each request has produced, by its X-Request-Id, in the form of the middleware
that vLLM is run with.

It must say the same as `/metrics` at the same moment. It knows neither routes nor texts. Source of the form:
`docs/interfaces.md` §6.
"""

import hmac
import secrets
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import orjson

from loadtest.engine.connection import Exchange
from loadtest.engine.options import EngineOptions

if TYPE_CHECKING:
    from loadtest.engine.answer import Answer

PATH: Final = "/taas/request_counts"
_REMEMBERED_MAX: Final = 50_000

Count = tuple[int, int, int]


class RequestBook:
    """The requests of this engine's life, by their callers' ids."""

    def __init__(self, options: EngineOptions) -> None:
        self._key = options.api_key
        self._boot = secrets.token_hex(8)
        self._started_at = time.monotonic()
        self._sequence = 0
        self._evicted: Count = (0, 0, 0)
        self._ended: Count = (0, 0, 0)
        self._running: dict[str, list[Answer]] = {}
        self._finished: OrderedDict[str, tuple[Count, int]] = OrderedDict()
        # Accepted, and never handed to the engine: only its connection will end it.
        self._pending: dict[str, int] = {}
        self._closed: OrderedDict[str, None] = OrderedDict()

    def is_closed(self, caller_id: str | None) -> bool:
        """Whether its caller has said that it will not come any more."""
        return caller_id in self._closed

    def hangs(self, caller_id: str, exchange: Exchange) -> None:
        """A request that is never answered, until its connection goes."""
        self._pending[caller_id] = self._pending.get(caller_id, 0) + 1

        def gone() -> None:
            self._pending[caller_id] -= 1
            if not self._pending[caller_id]:
                del self._pending[caller_id]

        exchange.on_gone = gone

    def begun(self, caller_id: str, answer: "Answer") -> None:
        """A request is in the engine."""
        answer.caller_id = caller_id
        self._running.setdefault(caller_id, []).append(answer)

    def ended(self, answer: "Answer") -> None:
        """One of its sequences has ended; with the last one the request has."""
        if any(sequence.finish is None for sequence in answer.sequences) or not answer.caller_id:
            return
        caller_id, answer.caller_id = answer.caller_id, ""
        self._running[caller_id].remove(answer)
        if not self._running[caller_id]:
            del self._running[caller_id]
        self._sequence += 1
        made = _count(answer)
        self._ended = _sum(self._ended, made)
        before, _ = self._finished.pop(caller_id, ((0, 0, 0), 0))
        self._finished[caller_id] = (_sum(before, made), self._sequence)
        if len(self._finished) > _REMEMBERED_MAX:
            _, (count, _) = self._finished.popitem(last=False)
            self._evicted = _sum(self._evicted, count)

    def handle(self, exchange: Exchange) -> None:
        """Answer a request for the page or for some ids."""
        scheme, _, key = (exchange.header("authorization") or "").partition(" ")
        known = self._key is None or hmac.compare_digest(key.encode(), self._key.encode())
        if not known or (self._key is not None and scheme.lower() != "bearer"):
            exchange.json(401, {"error": "Unauthorized"})
        elif exchange.method == "GET":
            exchange.json(200, self._page(int(exchange.query.removeprefix("after=") or 0)))
        else:
            asked = orjson.loads(exchange.body)
            exchange.json(200, self._states(asked["ids"], bool(asked.get("close"))))

    def _page(self, after: int) -> dict[str, Any]:
        running = self._now()
        finished = {
            caller_id: count
            for caller_id, (count, sequence) in self._finished.items()
            if sequence > after and caller_id not in running
        }
        total = self._ended
        for answers in self._running.values():
            for answer in answers:
                total = _sum(total, _count(answer))
        return {
            "v": 1, "boot": self._boot, "sequence": self._sequence, "counted": {"prompt": total[0],
            "generation": total[2]},
            "evicted": self._evicted, "running": running, "finished": finished, "more": False,
        }  # fmt: skip

    def _states(self, ids: list[str], close: bool) -> dict[str, Any]:
        if close:
            self._closed.update(dict.fromkeys(ids))
        running = self._now()
        found: dict[str, tuple[Any, ...]] = {}
        for caller_id in ids:
            count, _ = self._finished.get(caller_id, ((0, 0, 0), 0))
            if caller_id in running:
                found[caller_id] = ("running", *running[caller_id])
            elif caller_id in self._pending:
                found[caller_id] = ("pending", *count)
            else:
                found[caller_id] = ("finished" if caller_id in self._finished else "unknown", *count)
        age_ms = int((time.monotonic() - self._started_at) * 1000)
        return {"v": 1, "boot": self._boot, "age_ms": age_ms, "requests": found}

    def _now(self) -> dict[str, Count]:
        found: dict[str, Count] = {}
        for caller_id, answers in self._running.items():
            found[caller_id], _ = self._finished.get(caller_id, ((0, 0, 0), 0))
            for answer in answers:
                found[caller_id] = _sum(found[caller_id], _count(answer))
        return found


def _count(answer: "Answer") -> Count:
    begun = [sequence for sequence in answer.sequences if sequence.was_read]
    return (
        sum(sequence.prompt_tokens for sequence in begun),
        sum(sequence.cached for sequence in begun),
        sum(sequence.output for sequence in begun),
    )


def _sum(one: Count, other: Count) -> Count:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])
