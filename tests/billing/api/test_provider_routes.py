"""Adding another provider's API as an instance: it is asked for its models, and nothing that costs."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from billing.wire import redis_keys
from billing.wire.engine_kinds import PROVIDER_CONCURRENCY
from billing.wire.instance_entry import InstanceEntry
from tests.fixtures.valkey import free_port

Make = Callable[..., dict[str, Any]]
KEY = "sk-the-providers-key"


class FakeProvider:
    """Knows one model and one key; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.answers: dict[str, tuple[int, str]] = {"/v1/models/big": (200, json.dumps({"id": "big"}))}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                provider.asked.append((self.command, self.path, headers))
                status, body = provider.answers.get(self.path, (404, "{}"))
                if KEY not in {headers.get("x-api-key"), headers.get("authorization", "")[7:]}:
                    status, body = 401, json.dumps({"error": {"message": f"no such key: {headers}"}})
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_POST = _answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    made = FakeProvider()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture(autouse=True)
def model(made: Make) -> None:
    made("models", name="m", context_tokens=2048, routes=["chat"])


def body(provider: FakeProvider, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "engine": "openai", "url": provider.url, "key": KEY, "engine_model": "big"} | fields


def refused(admin: TestClient, status: int, **fields: Any) -> dict[str, Any]:
    answer = admin.post("/admin/v1/instances", json=fields)
    assert answer.status_code == status, answer.text
    assert KEY not in answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize(
    ("kind", "headers"),
    [
        ("openai", {"authorization": f"Bearer {KEY}"}),
        ("anthropic", {"x-api-key": KEY, "anthropic-version": "2023-06-01"}),
    ],
)
def test_a_provider_is_asked_once_in_its_own_words_and_is_added(
    made: Make, provider: FakeProvider, raw_redis: redis.Redis, kind: str, headers: dict[str, str]
) -> None:
    added = made("instances", **body(provider, engine=kind, url=f"{provider.url}/v1"))
    assert [asked[:2] for asked in provider.asked] == [("GET", "/v1/models/big")]
    assert headers.items() <= provider.asked[0][2].items()
    assert {"authorization", "x-api-key"} & provider.asked[0][2].keys() == headers.keys() & {
        "authorization",
        "x-api-key",
    }
    entry = InstanceEntry.from_json(raw_redis.hget(redis_keys.INSTANCES, added["instance"]) or b"")
    assert (entry.engine, entry.engine_model, entry.key, entry.url) == (kind, "big", KEY, provider.url)
    assert (entry.max_concurrency, entry.has_metrics, entry.abort, entry.counts) == (
        PROVIDER_CONCURRENCY, False, False, False,
    )  # fmt: skip
    assert (added["engine"], added["engine_model"], added["max_concurrency"]) == (
        kind, "big", PROVIDER_CONCURRENCY,
    )  # fmt: skip
    assert added["warnings"] == []


def test_routes_of_the_model_that_a_provider_does_not_serve_are_named(
    made: Make, provider: FakeProvider
) -> None:
    made("models", name="more", context_tokens=2048, routes=["chat", "completions"])
    (warning,) = made("instances", **body(provider, model="more", engine="anthropic"))["warnings"]
    assert "routes of the model: completions." in warning


def test_its_key_is_shown_nowhere(
    admin: TestClient, made: Make, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    added = made("instances", **body(provider, instance="p1", max_concurrency=3))
    shown = [json.dumps(added), admin.get("/admin/v1/instances").text]
    shown += [admin.delete("/admin/v1/instances/p1").text, caplog.text]
    assert not [text for text in shown if KEY in text]
    assert added["max_concurrency"] == 3


def test_a_removed_provider_is_not_asked_and_its_id_is_free_again(
    admin: TestClient, made: Make, provider: FakeProvider
) -> None:
    first = made("instances", **body(provider, instance="p1"))
    provider.asked.clear()
    assert admin.delete("/admin/v1/instances/p1").json()["engine_answers"] is None
    assert provider.asked == []
    again = made("instances", **body(provider, instance="p1"))
    assert again["epoch"] != first["epoch"]
    assert [path for _, path, _ in provider.asked] == ["/v1/models/big"]


def test_one_that_tells_nothing_of_a_single_model_is_asked_for_its_list(
    made: Make, provider: FakeProvider
) -> None:
    provider.answers = {"/v1/models": (200, json.dumps({"data": [{"id": "big"}]}))}
    assert made("instances", **body(provider))["warnings"] == []


def test_one_without_any_list_is_added_with_a_warning(made: Make, provider: FakeProvider) -> None:
    provider.answers = {}
    (warning,) = made("instances", **body(provider))["warnings"]
    assert "neither key nor model" in warning


def test_a_model_that_it_does_not_know_is_refused_with_those_that_it_knows(
    admin: TestClient, made: Make, provider: FakeProvider
) -> None:
    provider.answers = {"/v1/models": (200, json.dumps({"data": [{"id": "small"}]}))}
    error = refused(admin, 424, **body(provider))
    assert error["param"] == "engine_model"
    assert "'big'" in error["message"]
    assert "small" in error["message"]
    warning, _ = made("instances", **body(provider, force=True))["warnings"]
    assert "small" in warning


@pytest.mark.parametrize("answer", [(500, "{}"), (302, ""), (200, "<html>")])
def test_one_that_answers_wrongly_is_refused(
    admin: TestClient, provider: FakeProvider, answer: tuple[int, str]
) -> None:
    provider.answers = {"/v1/models": answer}
    assert refused(admin, 424, **body(provider))["code"] == "engine_refused"


def test_a_wrong_key_is_refused_without_repeating_it(admin: TestClient, provider: FakeProvider) -> None:
    error = refused(admin, 424, **body(provider, key="sk-of-somebody-else"))
    assert (error["param"], error["code"]) == ("key", "engine_refused")
    assert "sk-of-somebody-else" not in error["message"]


def test_one_that_is_not_there_can_be_forced(admin: TestClient, made: Make, provider: FakeProvider) -> None:
    away = body(provider, url=f"http://127.0.0.1:{free_port()}")
    assert "--force" in refused(admin, 424, **away)["message"]
    assert len(made("instances", **away, force=True)["warnings"]) == 2


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"url": "http://api.example.com"}, "url", "https"),
        ({"url": "http://10.0.0.5:8000"}, "url", "loopback"),
        ({"key": None}, "key", "--key-file"),
        ({"priority": True}, "priority", "priorities"),
        ({"engine": "gemini-nano"}, "engine", "openai, anthropic"),
        ({"max_concurrency": 0}, "max_concurrency", ""),
        ({"engine": "vllm", "max_concurrency": 5}, "max_concurrency", "taas calibrate"),
        ({"engine_model": "a b"}, "engine_model", ""),
        ({"key": "sk\r\nx: y"}, "key", ""),
    ],
)
def test_fields_that_cannot_be_are_refused_by_name(
    admin: TestClient, provider: FakeProvider, fields: dict[str, Any], param: str, said: str
) -> None:
    error = refused(admin, 400, **body(provider, **fields))
    assert error["param"] == param
    assert said in error["message"]
    assert provider.asked == []


def test_an_engine_may_have_a_name_of_its_own_for_the_model(
    made: Make, provider: FakeProvider, raw_redis: redis.Redis
) -> None:
    provider.answers["/v1/models"] = (200, json.dumps({"data": [{"id": "big"}]}))
    added = made("instances", **body(provider, engine="vllm"))
    assert not [warning for warning in added["warnings"] if "does not list" in warning]
    entry = InstanceEntry.from_json(raw_redis.hget(redis_keys.INSTANCES, added["instance"]) or b"")
    assert (entry.engine, entry.engine_model, entry.max_concurrency) == ("vllm", "big", None)
