"""An ASGI middleware for vLLM: counts what each request has produced, by the id that its caller gave it,
whatever happened to its answer.

vLLM's answers contain usage only if they end well, and its `/metrics` only has sums. This module keeps the
same figures for each request, so that a request can be settled exactly even if its client disconnected, its
gateway died, or the engine refused it after working. It runs inside vLLM's process and environment
(`--middleware taas_request_counts.RequestCounts`, with this folder on `PYTHONPATH`), so it uses the standard
library and `prometheus_client` only. It holds ids and numbers, never text of a prompt or an answer.

Checked against vLLM 0.32: `OutputProcessor.request_states` holds a `RequestState` for each sequence from
`add_request` until it has finished or was aborted, and `/metrics` counts a sequence's prompt with its first
output and each output token as it is processed.
"""

import asyncio
import hmac
import json
import os
import secrets
import time
from collections import OrderedDict
from contextvars import ContextVar
from typing import Any

PATH = "/taas/request_counts"
_ID_HEADER = b"x-request-id"
_BODY_BYTES_MAX = 1024 * 1024
# Finished requests are remembered for an hour, and no more than these; what is forgotten stays in `evicted`.
_REMEMBERED_MAX = 50_000
_REMEMBERED_S = 3600.0
# Ids that nobody will send any more; a request that still arrives under one is refused.
_CLOSED_MAX = 50_000
_PAGE_MAX = 20_000
# vLLM updates its counters a moment after the requests of the same step.
_AGREE_TRIES = 20
_AGREE_PAUSE_S = 0.005
_COUNTERS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")

_STARTED_AT = time.monotonic()

_caller_id: ContextVar[str] = ContextVar("taas_caller_id", default="")

Count = tuple[int, int, int]
"""Prompt tokens, cached ones among them, output tokens: as the engine's counters moved."""


class WatchedStates(dict):  # type: ignore[type-arg]
    """vLLM's `request_states`, which also reports each sequence that begins or ends to the book."""

    def __init__(self, states: dict[str, Any], book: "Book") -> None:
        super().__init__()
        self._book = book
        for key, state in states.items():
            self[key] = state

    def __setitem__(self, key: str, state: Any) -> None:
        self._book.begun(key, state, _caller_id.get())
        super().__setitem__(key, state)

    def __delitem__(self, key: str) -> None:
        self._book.ended(key, self.get(key))
        super().__delitem__(key)

    def pop(self, key: str, *default: Any) -> Any:
        """Remove it; the book has its last figures."""
        if key in self:
            self._book.ended(key, self[key])
        return super().pop(key, *default)


class Book:
    """What every request has produced since the engine started."""

    def __init__(self) -> None:
        self.boot = secrets.token_hex(8)
        self.sequence = 0
        # Of all sequences that have ended, and of those that are not remembered any more.
        self.ended_total: Count = (0, 0, 0)
        self.evicted: Count = (0, 0, 0)
        self._running: dict[str, tuple[str, Any]] = {}
        # By caller's id: the figures, the number of the last change, and when it was.
        self._finished: OrderedDict[str, tuple[Count, int, float]] = OrderedDict()

    def begun(self, key: str, state: Any, caller_id: str) -> None:
        """A sequence is in the engine."""
        parent = state.parent_req
        self._running[key] = (caller_id or str((parent or state).external_req_id), state)

    def ended(self, key: str, state: Any) -> None:
        """A sequence has finished or was aborted."""
        caller_id, _ = self._running.pop(key, ("", None))
        if state is None or not caller_id:
            return
        self.sequence += 1
        made = count_of(state)
        self.ended_total = _sum(self.ended_total, made)
        count, *_ = self._finished.pop(caller_id, ((0, 0, 0), 0, 0.0))
        self._finished[caller_id] = (_sum(count, made), self.sequence, time.monotonic())
        self._forget()

    def _forget(self) -> None:
        oldest = time.monotonic() - _REMEMBERED_S
        while self._finished:
            count, _, at = next(iter(self._finished.values()))
            if len(self._finished) <= _REMEMBERED_MAX and at >= oldest:
                return
            self._finished.popitem(last=False)
            self.evicted = _sum(self.evicted, count)

    def running(self) -> dict[str, Count]:
        """Requests with a sequence in the engine; the finished sequences of the same request are in their
        figures.
        """
        found: dict[str, Count] = {}
        for caller_id, state in self._running.values():
            known = found.get(caller_id) or self._done(caller_id)
            found[caller_id] = _sum(known, count_of(state))
        return found

    def finished(self, after: int, running: dict[str, Count]) -> tuple[dict[str, Count], bool]:
        """Those that have changed since number `after`, newest first, and whether there are more."""
        found: dict[str, Count] = {}
        for caller_id, (count, sequence, _) in reversed(self._finished.items()):
            if sequence <= after:
                break
            if len(found) >= _PAGE_MAX:
                return found, True
            if caller_id not in running:
                found[caller_id] = count
        return found, False

    def state(self, caller_id: str, running: dict[str, Count]) -> tuple[str, Count]:
        """`running`, `finished`, or `unknown`: the engine has never had it, or has forgotten it."""
        if caller_id in running:
            return "running", running[caller_id]
        known = self._finished.get(caller_id)
        return ("unknown", (0, 0, 0)) if known is None else ("finished", known[0])

    def total(self) -> Count:
        """Everything; what vLLM's own counters say, too."""
        total = self.ended_total
        for _, state in self._running.values():
            total = _sum(total, count_of(state))
        return total

    def _done(self, caller_id: str) -> Count:
        known = self._finished.get(caller_id)
        return (0, 0, 0) if known is None else known[0]


class RequestCounts:
    """The middleware. Each vLLM server has one; it finds the engine by the first request that it sees."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._book: Book | None = None
        self._looked = False
        self._in_http: dict[str, int] = {}
        self._closed: OrderedDict[str, None] = OrderedDict()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One HTTP request, watched on its way through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not self._looked:
            self._look(scope["app"])
        if scope["path"] == PATH:
            await self._answer(scope, receive, send)
            return
        caller_id = _header(scope, _ID_HEADER) if scope["method"] == "POST" else ""
        if not caller_id:
            await self._app(scope, receive, send)
        elif caller_id in self._closed:
            await _send_json(send, 410, {"error": {"message": "This request was closed.", "code": 410}})
        else:
            await self._pass(caller_id, scope, receive, send)

    async def _pass(self, caller_id: str, scope: Any, receive: Any, send: Any) -> None:
        self._in_http[caller_id] = self._in_http.get(caller_id, 0) + 1
        token = _caller_id.set(caller_id)
        try:
            await self._app(scope, receive, send)
        finally:
            _caller_id.reset(token)
            left = self._in_http[caller_id] - 1
            if left:
                self._in_http[caller_id] = left
            else:
                del self._in_http[caller_id]

    def _look(self, app: Any) -> None:
        """Find the engine and watch it. Without one (it is still starting), the next request looks again."""
        client = getattr(app.state, "engine_client", None)
        if client is None:
            return
        self._looked = True
        processor: Any = getattr(client, "output_processor", None)
        known = isinstance(getattr(processor, "request_states", None), dict)
        # Several servers before one engine count apart: none of them has the whole.
        if known and not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            self._book = Book()
            processor.request_states = WatchedStates(processor.request_states, self._book)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        if not _authorized(scope):
            await _send_json(send, 401, {"error": "Unauthorized"})
        elif self._book is None:
            await _send_json(send, 404, {"error": "This engine's requests cannot be counted."})
        elif scope["method"] == "GET":
            await _send_json(send, 200, await self._page(self._book, _after(scope)))
        elif scope["method"] == "POST":
            asked = await _asked(receive)
            if asked is None:
                await _send_json(send, 400, {"error": 'Expected {"ids": ["…"], "close": true or false}.'})
            else:
                await _send_json(send, 200, self._states(self._book, *asked))
        else:
            await _send_json(send, 405, {"error": "Method Not Allowed"})

    @staticmethod
    async def _page(book: Book, after: int) -> dict[str, Any]:
        """Everything at one moment: the engine's own counters, and each request's."""
        for _ in range(_AGREE_TRIES):
            counted, total = _counters(), book.total()
            if counted == (total[0], total[2]):
                break
            await asyncio.sleep(_AGREE_PAUSE_S)
        running = book.running()
        finished, more = book.finished(after, running)
        counted = _counters()
        return {
            "v": 1, "boot": book.boot, "sequence": book.sequence, "counted": {"prompt": counted[0],
            "generation": counted[1]},
            "evicted": book.evicted, "running": running, "finished": finished, "more": more,
        }  # fmt: skip

    def _states(self, book: Book, ids: list[str], close: bool) -> dict[str, Any]:
        """The state of each request. With `close`, a request that has not arrived yet is refused later, so
        `unknown` is final for this process, which `age_ms` distinguishes from the one before it.
        """
        if close:
            for caller_id in ids:
                self._closed[caller_id] = None
            while len(self._closed) > _CLOSED_MAX:
                self._closed.popitem(last=False)
        running = book.running()
        found = {}
        for caller_id in ids:
            state, count = book.state(caller_id, running)
            if state != "running" and caller_id in self._in_http:
                state = "pending"
            found[caller_id] = [state, *count]
        age_ms = int((time.monotonic() - _STARTED_AT) * 1000)
        return {"v": 1, "boot": book.boot, "age_ms": age_ms, "requests": found}


def count_of(state: Any) -> Count:
    """By how much one sequence has moved the engine's counters. Before its first output it has moved none."""
    if state.is_prefilling:
        return (0, 0, 0)
    # Without `--disable-log-stats` there always are statistics; without statistics there are no counters
    # either.
    output = 0 if state.stats is None else state.stats.num_generation_tokens
    return (int(state.prompt_len), int(state.num_cached_tokens), int(output))


def _sum(one: Count, other: Count) -> Count:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])


def _counters() -> tuple[int, int]:
    from prometheus_client import REGISTRY

    found = dict.fromkeys(_COUNTERS, 0.0)
    for metric in REGISTRY.restricted_registry(list(_COUNTERS)).collect():
        for sample in metric.samples:
            if sample.name in found:
                found[sample.name] += sample.value
    return int(found[_COUNTERS[0]]), int(found[_COUNTERS[1]])


def _authorized(scope: Any) -> bool:
    """vLLM's own key guards this path, too; if vLLM has no key, this path has none."""
    given = getattr(getattr(scope["app"].state, "args", None), "api_key", None)
    keys = [key for key in (given if isinstance(given, list) else [given]) if key]
    keys += [key for key in (os.environ.get("VLLM_API_KEY"),) if key]
    scheme, _, key = _header(scope, b"authorization").partition(" ")
    same = [hmac.compare_digest(key.encode(), known.encode()) for known in keys]
    return not keys or (scheme.lower() == "bearer" and any(same))


def _header(scope: Any, name: bytes) -> str:
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))[:256]
    return ""


def _after(scope: Any) -> int:
    word = scope.get("query_string", b"").decode("latin-1").removeprefix("after=")
    return int(word) if word.isascii() and word.isdigit() and len(word) < 20 else 0


async def _asked(receive: Any) -> tuple[list[str], bool] | None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or len(body) > _BODY_BYTES_MAX:
            return None
        if not message.get("more_body"):
            break
    try:
        asked = json.loads(body)
        ids, close = asked["ids"], asked.get("close", False)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    good = isinstance(ids, list) and all(isinstance(each, str) and 0 < len(each) <= 256 for each in ids)
    return (ids, close) if good and isinstance(close, bool) else None


async def _send_json(send: Any, status: int, body: Any) -> None:
    content = json.dumps(body, separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
