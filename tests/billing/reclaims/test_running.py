"""A reclaim of half of two engines while a gateway streams from both: over real HTTP, with the admin API
as an operator uses it.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from billing.api.app import build_app
from billing.catalogue.projection import Projector
from billing.metrics import BillingMetrics
from billing.reclaims.carry_out import Reclaimer
from billing.settings import BillingSettings
from billing.usage.consumer import Consumer
from billing.wire import redis_keys
from billing.wire.ending import Ending
from billing.wire.usage_event import UsageEvent
from tests.fixtures.engine import EngineMaker
from tests.fixtures.gateway import GatewayProcess, StartGateway, wait_until

MODEL = "sim"
NOTICE_S = 5
# At 20 ms a token: two seconds and a half, and a minute.
SHORT, LONG = 125, 3000


class Stream:
    """One streamed request in a thread of its own."""

    def __init__(self, gateway: GatewayProcess, key: str, tokens: int, **fields: Any) -> None:
        self.tokens = tokens
        self.fields = fields
        self.usage: dict[str, Any] = {}
        self.request_id = ""
        self.chunks = 0
        self.last = ""
        self._thread = threading.Thread(target=self._read, args=(gateway, key), daemon=True)
        self._thread.start()

    def _read(self, gateway: GatewayProcess, key: str) -> None:
        body = {
            "model": MODEL, "stream": True, "max_tokens": self.tokens, "ignore_eos": True,
            "messages": [{"role": "user", "content": "Count."}], **self.fields,
        }  # fmt: skip
        with (
            gateway.client(key, 90) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            assert answer.status_code == 200, answer.read()
            self.request_id = answer.headers["x-request-id"]
            # Those that still flow when the test is over end with its gateway.
            with contextlib.suppress(httpx.RemoteProtocolError):
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        self.chunks += 1
                        self.last = line
                    if line.startswith("data: {"):
                        self.usage = json.loads(line[6:]).get("usage") or self.usage

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()


class Operator:
    """Speaks to the admin API; billing's loop is stepped by hand."""

    def __init__(self, client: TestClient, database: Engine, raw: redis.Redis) -> None:
        self.client = client
        self.raw = raw
        self._reclaimer = Reclaimer(database, raw, Projector(database, raw))

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"/admin/v1/{path}", json=body)
        assert answer.is_success, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def get(self, path: str) -> dict[str, Any]:
        told: dict[str, Any] = self.client.get(f"/admin/v1/{path}").json()
        return told

    def is_done(self, reclaim: str) -> bool:
        self._reclaimer.step()
        return bool(self.get(f"reclaims/{reclaim}")["state"] == "done")

    def events(self) -> dict[str, UsageEvent]:
        entries = self.raw.xrange(redis_keys.usage_stream(MODEL))
        found = [UsageEvent.from_json(fields[b"e"]) for _, fields in entries]
        return {event.request_id: event for event in found}

    def place_of(self, stream: Stream) -> str:
        """The instance that an open stream is on."""
        raw = self.raw.hget(redis_keys.reservation(MODEL, stream.request_id), "inst")
        return "" if raw is None else raw.decode()


@pytest.fixture
def operator(database: Engine, raw_redis: redis.Redis) -> Iterator[Operator]:
    app = build_app(BillingSettings(admin_key="adm-1", service_key="svc-1"), database, raw_redis)
    with TestClient(app, headers={"authorization": "Bearer adm-1"}) as client:
        yield Operator(client, database, raw_redis)


def asked_once(gateway: GatewayProcess, key: str) -> str:
    """A small request to its end; its id."""
    body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi."}]}
    with gateway.client(key) as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-request-id"])


def test_half_of_two_engines_is_taken_under_load_and_comes_back(
    operator: Operator, make_engine: EngineMaker, start_gateway: StartGateway
) -> None:
    key = _furnish(operator, make_engine)
    gateway = start_gateway()
    streams: list[Stream] = []
    # One after the other, so that each goes where there is less: both engines have some of either length.
    for tokens in (LONG, LONG, SHORT, SHORT) * 2:
        streams.append(Stream(gateway, key, tokens))
        wait_until(lambda: streams[-1].chunks > 2, "a stream that flows")
    places = {stream: operator.place_of(stream) for stream in streams}
    assert {(places[stream], stream.tokens) for stream in streams} == {
        (instance, tokens) for instance in ("one", "two") for tokens in (SHORT, LONG)
    }

    by_ms = int(time.time() * 1000) + NOTICE_S * 1000
    told = operator.post("reclaims", pool=MODEL, instances=1, use="research", by=by_ms)
    (gone,) = told["chosen"]
    assert told["state"] == "draining"
    on_it = [stream for stream in streams if places[stream] == gone]
    assert {each["request"] for each in told["plan"]["streams"]} == {stream.request_id for stream in on_it}
    time.sleep(1)  # the promise: within a second every gateway knows
    later = [asked_once(gateway, key) for _ in range(8)]
    wait_until(lambda: set(later) <= operator.events().keys(), "settled requests")
    assert {operator.events()[request].instance for request in later} == {"one", "two"} - {gone}

    wait_until(lambda: operator.is_done(told["reclaim"]), "reclaim that is done")
    shorts, longs = ([stream for stream in on_it if stream.tokens == tokens] for tokens in (SHORT, LONG))
    wait_until(lambda: all(stream.over for stream in on_it), "streams that end")
    events = operator.events()
    for stream in shorts:
        assert events[stream.request_id].ending is Ending.COMPLETE
        assert stream.last == "data: [DONE]"
    for stream in longs:
        assert (event := events[stream.request_id]).ending is Ending.OPERATOR_STOP
        assert event.ended_ms >= by_ms
        assert event.billed.output == 0
        assert "error" in json.loads(stream.last.removeprefix("data: "))
    elsewhere = [stream for stream in streams if stream.tokens == LONG and stream not in on_it]
    assert elsewhere
    assert longs
    assert not any(stream.over for stream in elsewhere)

    steps = operator.get(f"reclaims/{told['reclaim']}")["history"]
    assert [step["change"] for step in steps] == ["planned", "draining", "stopped", "done"]
    assert {each["request"] for each in steps[2]["detail"]["requests"]} == {
        stream.request_id for stream in longs
    }
    assert datetime.fromisoformat(steps[3]["at"]).timestamp() * 1000 >= by_ms

    assert operator.post(f"reclaims/{told['reclaim']}/release")["state"] == "released"
    back: set[str] = set()

    def is_back() -> bool:
        back.add(asked_once(gateway, key))
        return any(event.instance == gone for event in operator.events().values() if event.request_id in back)

    wait_until(is_back, "request on the instance that came back")


def test_a_flex_stream_resumes_elsewhere_as_one_stream_with_one_receipt(
    operator: Operator, database: Engine, make_engine: EngineMaker, start_gateway: StartGateway
) -> None:
    """The machine is wanted at once; the other one appears, and the stream, which would last for a minute,
    goes on there.
    """
    leaving, staying = (make_engine("--decode-ms", pace, "--context", "4096") for pace in ("20", "1"))
    key = _open_shop(operator)
    operator.post("instances", model=MODEL, url=leaving.url, key=leaving.key, instance="leaving")
    gateway = start_gateway()
    stream = Stream(gateway, key, LONG, service_tier="flex", stream_options={"include_usage": True})
    wait_until(lambda: stream.chunks > 10, "stream that flows")
    told = operator.post("reclaims", pool=MODEL, instances=2, use="research")
    assert (told["state"], told["chosen"]) == ("draining", ["leaving"])
    operator.post("instances", model=MODEL, url=staying.url, key=staying.key, instance="staying")
    wait_until(lambda: operator.is_done(told["reclaim"]), "reclaim that is done", 30)
    wait_until(lambda: stream.over, "end of the stream", 60)
    assert stream.last == "data: [DONE]"
    assert stream.usage["completion_tokens"] == LONG

    wait_until(lambda: not operator.raw.zcard(redis_keys.open_requests(MODEL)), "settled request")
    parts = [event for _, event in sorted(operator.events().items())]
    assert [event.request_id for event in parts] == [stream.request_id, f"{stream.request_id}-2"]
    assert [(event.instance, event.ending) for event in parts] == [
        ("leaving", Ending.COMPLETE), ("staying", Ending.COMPLETE),
    ]  # fmt: skip
    for event, engine in zip(parts, (leaving, staying), strict=True):
        counted = engine.counters()
        assert (event.produced.prompt, event.produced.output) == (counted["prompt"], counted["generation"])
    steps = operator.get(f"reclaims/{told['reclaim']}")["history"]
    assert [step["change"] for step in steps] == ["planned", "draining", "preempted", "done"]
    Consumer(
        database, operator.raw, name="c", batch=500, claim_idle_ms=0, metrics=BillingMetrics()
    ).consume_once()
    receipt = operator.get(f"requests/{stream.request_id}")
    assert (receipt["billed"]["output"], receipt["billed"]["prompt"]) == (LONG, stream.usage["prompt_tokens"])
    assert receipt["parts"] == [stream.request_id, f"{stream.request_id}-2"]


def _furnish(operator: Operator, make_engine: EngineMaker) -> str:
    """A model on two engines, and a tenant's key."""
    key = _open_shop(operator)
    for name in ("one", "two"):
        engine = make_engine("--decode-ms", "20", "--context", "4096")
        operator.post("instances", model=MODEL, url=engine.url, key=engine.key, instance=name)
    return key


def _open_shop(operator: Operator) -> str:
    """A model that has two machines, and a tenant's key."""
    operator.post("models", name=MODEL, context_tokens=4096)
    operator.post("prices", model=MODEL, input="1", output="1")
    assert operator.client.patch(f"/admin/v1/pools/{MODEL}", json={"instances": 2}).is_success
    operator.post("tenants", name="acme")
    return str(operator.post("keys", tenant="acme")["key"])
