"""Asks a running gateway on any of the four generating routes, and reads what came back in the dialect of
the route.
"""

import json
from dataclasses import dataclass
from typing import Any

import httpx

from billing.wire import redis_keys
from billing.wire.usage_event import UsageEvent
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, wait_until

TOKENS = 8
TEXT = "Say something short about the sea."
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
ROUTES = tuple(PATHS)
EVERY_WAY = [(route, stream) for route in ROUTES for stream in (False, True)]
_SAID = [{"role": "user", "content": TEXT}]
_BODIES: dict[str, dict[str, Any]] = {
    "chat": {"messages": _SAID, "max_tokens": TOKENS},
    "completions": {"prompt": TEXT, "max_tokens": TOKENS},
    "responses": {"input": TEXT, "max_output_tokens": TOKENS},
    "messages": {"messages": _SAID, "max_tokens": TOKENS},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a caller got: `events` are the decoded data lines of a stream, `done` whether it ended as a
    success ends.
    """

    route: str
    status: int
    headers: httpx.Headers
    text: str
    events: list[dict[str, Any]]
    done: bool

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def json(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.text)
        return answer

    def error_code(self) -> str:
        """The reason code of the error that this is, or that the stream ended with; the form is checked."""
        answer = self.events[-1] if self.events else self.json
        assert self.request_id.startswith("req_")
        error: dict[str, Any] = answer["error"]
        assert error["message"]
        if self.route == "messages":
            assert answer["type"] == "error"
            assert answer["request_id"] == self.request_id
            assert error["type"].endswith("_error")
            return str(error["details"]["error_code"])
        assert {"message", "type", "param", "code"} == set(error)
        return str(error["code"])


def body(route: str, stream: bool = False, **fields: Any) -> dict[str, Any]:
    """A good request body of a route."""
    return {"model": MODEL, **_BODIES[route], "stream": stream, **fields}


def ask(gateway: GatewayProcess, key: str, route: str, stream: bool = False, **fields: Any) -> Outcome:
    """Send a request and read its answer to the end."""
    with gateway.client(key) as client:
        answer = client.post(PATHS[route], json=body(route, stream, **fields))
    lines = answer.text.split("\n") if answer.headers["content-type"].startswith("text/event-stream") else []
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    last = events[-1].get("type") if events else None
    done = "data: [DONE]" in lines or last in {"message_stop", "response.completed", "response.incomplete"}
    return Outcome(
        route=route,
        status=answer.status_code,
        headers=answer.headers,
        text=answer.text,
        events=events,
        done=done,
    )


def the_event(catalogue: Catalogue, outcome: Outcome) -> UsageEvent:
    """The one usage event of this request; nothing is left open."""
    wait_until(lambda: catalogue.redis.zcard(redis_keys.open_requests(MODEL)) == 0, "end of all reservations")
    wait_until(lambda: any(e.request_id == outcome.request_id for e in catalogue.events()), "usage event")
    (event,) = [event for event in catalogue.events() if event.request_id == outcome.request_id]
    assert event.http_status == outcome.status
    return event


def assert_nothing_leaks(outcome: Outcome, *engines: SimEngine) -> None:
    """No address, path or key of an engine is in what the caller got."""
    seen = (outcome.text + repr(outcome.headers)).lower()
    inside = ["cluster.internal", "/srv/", "core_client", "traceback", "worker 3", "127.0.0.1", "localhost"]
    for engine in engines:
        # With its colon: five digits alone occur in a request id by chance.
        inside += [f":{engine.port}", engine.key]
    assert [word for word in inside if word in seen] == []
