"""Gateways without a network: their knowledge, and requests that choose by it."""

from typing import Any

import orjson

from billing.wire.instance_entry import EngineLoad, InstanceEntry, InstanceStatus
from billing.wire.tokens import Weights
from gateway.catalogue.entries import Model
from gateway.protocol import parse_request
from gateway.request import Route
from gateway.routes import ROUTES
from gateway.routing.choice import Choice
from gateway.routing.router import Router

LONG = "The tide comes in and the tide goes out again. " * 100
# Slow, so that no prompt is read while a test runs.
MODEL = Model(
    name="m", pool="m", cell="m", visible="everyone", owner=None, routes=frozenset({"chat"}),
    engine_model="m", context_tokens=4096, vocabulary_tokens=None, default_max_tokens=64,
    weights=Weights(1, 1000, 100, 4000), chat_template_kwargs=frozenset(), created=0, active=True,
    capacity_mu_s=100_000,
)  # fmt: skip


def entry(name: str, *, epoch: str = "e1", running: int = 0) -> InstanceEntry:
    """A ready instance."""
    return InstanceEntry(
        instance=name, model="m", pool="m", cell="m", url="http://x", key=None, epoch=epoch,
        status=InstanceStatus.READY, load=EngineLoad(running=running),
    )  # fmt: skip


READY = [entry(name) for name in "abcd"]


class Knowing:
    """One gateway process."""

    def __init__(self, index_bytes: int = 1_000_000) -> None:
        self.open_here: dict[str, int] = {}
        self.troubled: set[str] = set()
        self.router = Router(
            index_bytes=index_bytes,
            open_here=self.open_here,
            troubled=self.troubled,
            avoided=self.troubled.__contains__,
            first_turn=0,
        )

    def choice(
        self, text: str = LONG, *, salt: str = "salt", session: str | None = None, **fields: Any
    ) -> Choice:
        """Of a request with this prompt; `session`: in the header."""
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": True} | fields
        parsed = parse_request(ROUTES[Route.CHAT], orjson.dumps(body))
        headers = [] if session is None else [(b"x-session-id", session.encode())]
        return Choice(self.router, parsed, MODEL, salt, headers)

    def send(self, choice: Choice, ready: list[InstanceEntry] | None = None) -> str:
        """Send it to the best instance, whose id this returns."""
        best = choice.ranked(list(ready or READY))[0]
        choice.sent(best, tells_first_token=True)
        return best.instance
