"""Callers on every route, streamed and not, of whom some leave at a random moment. They remember what they
were answered, by request id.
"""

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from loadtest import plain_http
from loadtest.faults.parts import BOUGHT, BOUGHT_ROUTES, MODEL, ROUTES

_PATHS: Final = {name: f"/v1/{name}" for name in ROUTES} | {"chat": "/v1/chat/completions"}
_ENDS: Final = (b"data: [DONE]", b"event: message_stop", b"response.completed", b"response.incomplete")
_LONGEST_S: Final = 30.0
_BOUGHT_PART: Final = 0.2


@dataclass(slots=True)
class Answers:
    """What callers saw: status by request id, and which of them had a whole answer."""

    status: dict[str, int] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    asked: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def heard(self, request_id: str, status: int, *, whole: bool) -> None:
        with self.lock:
            self.status[request_id] = status
            if whole:
                self.whole.add(request_id)


class Callers:
    """So many threads, each one request after the other, until stopped. `buys`: some requests go to the model
    that a provider serves.
    """

    def __init__(
        self, urls: list[str], keys: list[str], answers: Answers, seed: int, count: int, *, buys: bool
    ) -> None:
        self._urls, self._keys, self._answers, self._buys = urls, keys, answers, buys
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed}/{number}"),), daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self, dice: random.Random) -> None:
        while not self._stopped.is_set():
            with self._answers.lock:
                self._answers.asked += 1
            try:
                self._call(dice)
            except (httpx.HTTPError, OSError):
                time.sleep(0.1)

    def _call(self, dice: random.Random) -> None:
        bought = self._buys and dice.random() < _BOUGHT_PART
        model, routes = (BOUGHT, BOUGHT_ROUTES) if bought else (MODEL, ROUTES)
        route, stream = dice.choice(routes), dice.random() < 0.6
        patience_s = dice.uniform(0, 1.5) if dice.random() < 0.3 else _LONGEST_S
        headers = {"authorization": f"Bearer {dice.choice(self._keys)}"}
        with (
            plain_http.Client(base_url=dice.choice(self._urls), timeout=patience_s) as client,
            client.stream(
                "POST", _PATHS[route], json=_body(model, route, stream, dice), headers=headers
            ) as answer,
        ):
            request_id = answer.headers.get("x-request-id", "")
            self._answers.heard(request_id, answer.status_code, whole=False)
            leaves_at, said = time.monotonic() + patience_s, b""
            for piece in answer.iter_bytes():
                said += piece
                if time.monotonic() > leaves_at:
                    return
            ended = not stream or (any(word in said for word in _ENDS) and b'"error"' not in said)
            self._answers.heard(request_id, answer.status_code, whole=answer.status_code == 200 and ended)
            if answer.status_code >= 500:
                time.sleep(0.1)


def _body(model: str, route: str, stream: bool, dice: random.Random) -> dict[str, Any]:
    text = "The sea is wide. " * dice.randint(1, 20) + str(dice.random())
    tokens = dice.randint(4, 120)
    body: dict[str, Any] = {"model": model, "stream": stream}
    if route == "completions":
        return body | {"prompt": text, "max_tokens": tokens}
    if route == "responses":
        return body | {"input": text, "max_output_tokens": tokens}
    return body | {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}
