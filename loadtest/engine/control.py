"""/sim/*: what a test tells the simulated engine and asks of it. No key is needed: it listens on loopback."""

import os
import signal
from collections import deque
from pathlib import Path
from typing import Any

import orjson

from loadtest.engine.connection import Exchange
from loadtest.engine.faults import FaultBook, UnknownFault
from loadtest.engine.prefix_cache import PrefixCache
from loadtest.engine.truth import TruthBook


class Control:
    """`POST /sim/faults`, `POST /sim/reset`, `POST /sim/die`, `GET /sim/requests`, `GET /sim/truth`. Reset
    leaves the counters: an engine's never go back.
    """

    def __init__(
        self, faults: FaultBook, truths: TruthBook, received: deque[dict[str, Any]], cache: PrefixCache
    ) -> None:
        self._faults = faults
        self._truths = truths
        self._received = received
        self._cache = cache

    def handle(self, exchange: Exchange) -> None:
        match exchange.method, exchange.path:
            case "GET", "/sim/truth":
                exchange.json(200, self._truths.as_json())
            case "GET", "/sim/requests":
                exchange.json(200, [entry | {"body": _shown(entry["body"])} for entry in self._received])
            case "POST", "/sim/reset":
                self._faults.clear()
                self._truths.clear()
                self._received.clear()
                self._cache.clear()
                exchange.json(200, {})
            case "POST", "/sim/die":
                # Its last truth into the file that the body names; then kill -9, before another token.
                Path(exchange.body.decode()).write_bytes(orjson.dumps(self._truths.as_json()))
                os.kill(os.getpid(), signal.SIGKILL)
            case "POST", "/sim/faults":
                self._order(exchange)
            case _:
                exchange.json(404, {"error": "no such control"})

    def _order(self, exchange: Exchange) -> None:
        """One order or a list of them; all are checked."""
        try:
            given = orjson.loads(exchange.body)
            for order in given if isinstance(given, list) else [given]:
                self._faults.add(order)
        except (UnknownFault, KeyError, orjson.JSONDecodeError) as exc:
            exchange.json(400, {"error": str(exc)})
        else:
            exchange.json(200, {"orders": len(self._faults.orders)})


def _shown(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw.decode("latin-1")
