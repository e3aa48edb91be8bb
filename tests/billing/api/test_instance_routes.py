"""Adding an engine by hand: it is looked at first, over real HTTP, and what it cannot do is said."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from billing.audit.engine_runs import read_runs
from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry
from billing.wire.routes import POOLING_ROUTES, TEXT_ROUTES
from billing.wire.tokens import NO_TOKENS
from tests.fixtures.engine import EngineMaker
from tests.fixtures.valkey import free_port

Make = Callable[..., dict[str, Any]]
COUNTERS = (
    'process_start_time_seconds 1.75e+09\nvllm:prompt_tokens_total{engine="0"} '
    '944.0\nvllm:generation_tokens_total{engine="0"} 1121.0\n'
)
REQUEST_COUNTS = json.dumps(
    {
        "v": 1,
        "boot": "b",
        "sequence": 0,
        "counted": {"prompt": 0, "generation": 0},
        "running": {},
        "finished": {},
    }
)
MODELS = json.dumps({"object": "list", "data": [{"id": "m", "max_model_len": 2048}]})


class FakeEngine:
    """Answers by a table of paths; needs the key `ek` when told so."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {
            "/v1/models": (200, MODELS), "/metrics": (200, COUNTERS), "/inference/v1/abort_requests": (200,
            ""),
            "/taas/request_counts?after=0": (200, REQUEST_COUNTS),
        }  # fmt: skip
        self.key: str | None = None
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", "0")))
                status, body = engine.answers.get(self.path, (404, "{}"))
                if engine.key is not None and self.headers.get("authorization") != f"Bearer {engine.key}":
                    status, body = 401, "{}"
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
def engine_server() -> Iterator[FakeEngine]:
    engine = FakeEngine()
    thread = threading.Thread(target=engine.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield engine
    engine.server.shutdown()
    thread.join()
    engine.server.server_close()


@pytest.fixture(autouse=True)
def model(made: Make) -> None:
    made("models", name="m", context_tokens=2048)


def test_a_vllm_is_added_with_its_counters_as_baseline(
    admin: TestClient, made: Make, engine_server, raw_redis
):
    engine_server.key = "ek"
    added = made("instances", model="m", url=f"{engine_server.url}/v1/", key="ek")
    entry = InstanceEntry.from_json(raw_redis.hget(redis_keys.INSTANCES, added["instance"]))
    assert (entry.url, entry.key, entry.epoch, entry.abort) == (engine_server.url, "ek", "1.75e+09", True)
    assert (entry.baseline.prompt, entry.baseline.generation, entry.lease_until_ms) == (944, 1121, 0)
    assert added["warnings"] == []
    assert "ek" not in map(str, added.values())
    (listed,) = admin.get("/admin/v1/instances").json()["data"]
    assert (listed["instance"], listed["status"], listed["added"]) == (added["instance"], "ready", "by hand")
    assert "key" not in listed


def test_an_instance_is_sent_priorities_only_where_the_operator_says_so(made: Make, engine_server, raw_redis):
    added = made("instances", model="m", url=engine_server.url, priority=True)
    assert added["priority"]
    assert InstanceEntry.from_json(raw_redis.hget(redis_keys.INSTANCES, added["instance"])).priority


def test_an_engine_that_does_not_count_its_requests_is_added_with_a_warning(made: Make, engine_server):
    del engine_server.answers["/taas/request_counts?after=0"]
    added = made("instances", model="m", url=engine_server.url)
    (warning,) = added["warnings"]
    assert "--middleware" in warning
    assert added["counts"] is False


def test_a_bare_backend_is_added_with_warnings(made: Make, engine_server):
    engine_server.answers = {
        "/v1/models": (200, MODELS),
        "/inference/v1/abort_requests": (200, '{"choices": []}'),
    }
    added = made("instances", model="m", url=engine_server.url)
    assert (added["abort"], added["priority"], added["baseline"]) == (
        False,
        False,
        {"prompt": 0, "generation": 0},
    )
    assert len(added["warnings"]) == 2
    assert added["epoch"].startswith("added-")
    assert added["routes"] is None, "it has none of the routes that were tried, so nothing is known"


@pytest.mark.parametrize(
    ("options", "offered", "routes", "pool"),
    [
        ((), ["chat", "embeddings"], TEXT_ROUTES, "named"),
        (("--pooling",), ["chat", "embeddings"], POOLING_ROUTES, "named/pooling"),
        (("--pooling",), ["embeddings"], POOLING_ROUTES, "named"),
    ],
)
def test_an_engine_is_added_for_the_routes_that_it_serves(
    made: Make,
    make_engine: EngineMaker,
    raw_redis: redis.Redis,
    options: tuple[str, ...],
    offered: list[str],
    routes: tuple[str, ...],
    pool: str,
) -> None:
    """One that pools, beside those that generate, is in a pool of its own: nothing of it is sold."""
    engine = make_engine(*options)
    made("models", name="named", context_tokens=2048, routes=offered, engine_model=engine.model)
    added = made("instances", model="named", url=engine.url, key=engine.key)
    assert added["warnings"] == []
    assert (added["routes"], added["pool"], added["cell"]) == ([*routes], pool, "named")
    entry = InstanceEntry.from_json(raw_redis.hget(redis_keys.INSTANCES, added["instance"]))  # type: ignore[arg-type]
    assert (entry.routes, entry.pool, entry.cell) == (set(routes), pool, "named")
    assert entry.abort is not bool(options)
    assert entry.baseline == NO_TOKENS, "asking has cost nothing"


def test_an_engine_that_is_not_there_is_refused_unless_forced(admin: TestClient):
    body = {"model": "m", "url": f"http://127.0.0.1:{free_port()}"}
    answer = admin.post("/admin/v1/instances", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (424, "unreachable")
    assert "--force" in answer.json()["error"]["message"]
    assert admin.get("/admin/v1/instances").json()["data"] == []
    forced = admin.post("/admin/v1/instances", json={**body, "force": True})
    assert (forced.status_code, len(forced.json()["warnings"])) == (201, 2)


WRONG_ANSWERS = [
    ((401, "{}"), "engine_refused"),
    ((500, "{}"), "engine_refused"),
    ((302, ""), "engine_refused"),
    ((200, "<html>"), "engine_refused"),
    ((200, '{"data": [{"id": 7}]}'), "engine_refused"),
]


def test_an_engine_that_answers_wrongly_is_refused(admin: TestClient, engine_server):
    for answer, code in WRONG_ANSWERS:
        engine_server.answers["/v1/models"] = answer
        refused = admin.post("/admin/v1/instances", json={"model": "m", "url": engine_server.url})
        assert (refused.status_code, refused.json()["error"]["code"]) == (424, code), answer


def test_a_shorter_context_than_the_models_is_a_warning(made: Make, engine_server):
    engine_server.answers["/v1/models"] = (200, json.dumps({"data": [{"id": "m", "max_model_len": 512}]}))
    (warning,) = made("instances", model="m", url=engine_server.url)["warnings"]
    assert "512" in warning
    assert "2048" in warning


def test_an_engine_that_does_not_list_the_model_is_added_with_a_warning(made: Make, engine_server):
    engine_server.answers["/v1/models"] = (200, json.dumps({"data": [{"id": "other"}]}))
    (warning,) = made("instances", model="m", url=engine_server.url)["warnings"]
    assert "'m'" in warning
    assert "other" in warning


def test_an_engine_without_counters_may_serve_several_models(admin: TestClient, made: Make, engine_server):
    made("models", name="m2", context_tokens=2048)
    engine_server.answers = {"/v1/models": (200, MODELS), "/inference/v1/abort_requests": (404, "")}
    made("instances", model="m", url=engine_server.url)
    made("instances", model="m2", url=engine_server.url)
    again = admin.post("/admin/v1/instances", json={"model": "m2", "url": engine_server.url})
    assert again.status_code == 409


def test_an_engine_with_counters_is_counted_once(admin: TestClient, made: Make, engine_server):
    made("models", name="m2", context_tokens=2048)
    made("instances", model="m", url=engine_server.url)
    other = admin.post("/admin/v1/instances", json={"model": "m2", "url": engine_server.url})
    assert (other.status_code, other.json()["error"]["param"]) == (409, "url")


def test_an_instance_of_no_model_says_how_to_add_one(admin: TestClient, engine_server):
    answer = admin.post("/admin/v1/instances", json={"model": "nothing", "url": engine_server.url})
    assert answer.status_code == 404
    assert "taas model add nothing" in answer.json()["error"]["message"]


def test_one_engine_is_one_instance_and_an_id_in_use_is_taken(
    admin: TestClient, made: Make, engine_server, raw_redis
):
    made("instances", model="m", url=engine_server.url, instance="gpu-1")
    again = admin.post("/admin/v1/instances", json={"model": "m", "url": f"{engine_server.url}/"})
    assert (again.status_code, again.json()["error"]["param"]) == (409, "url")
    taken = admin.post(
        "/admin/v1/instances", json={"model": "m", "url": "http://127.0.0.1:1", "instance": "gpu-1"}
    )
    assert (taken.status_code, taken.json()["error"]["param"]) == (409, "instance")


def test_a_removed_instance_is_shown_as_such_and_whether_its_engine_runs(
    admin: TestClient, made: Make, engine_server, raw_redis
):
    made("instances", model="m", url=engine_server.url, instance="gpu-1")
    gone = f"http://127.0.0.1:{free_port()}"
    admin.post("/admin/v1/instances", json={"model": "m", "url": gone, "instance": "gpu-2", "force": True})
    for instance, answers in (("gpu-1", True), ("gpu-2", False), ("gpu-1", True)):
        removed = admin.delete(f"/admin/v1/instances/{instance}").json()
        assert (removed["status"], removed["engine_answers"], removed["open_requests"]) == (
            "draining",
            answers,
            0,
        )
        assert (
            InstanceEntry.from_json(raw_redis.hget(redis_keys.INSTANCES, instance)).status.value == "draining"
        )
    assert [row["removed"] for row in admin.get("/admin/v1/instances").json()["data"]] == [True, True]


def test_an_id_is_used_again_under_a_new_epoch_and_what_was_before_stays_counted(
    admin: TestClient, made: Make, engine_server, raw_redis, database
):
    del engine_server.answers["/taas/request_counts?after=0"]
    first = made("instances", model="m", url=engine_server.url, instance="pod-0")
    admin.delete("/admin/v1/instances/pod-0")
    # Produced under the first registration, and read by nobody yet.
    engine_server.answers["/metrics"] = (200, COUNTERS.replace("944", "1000").replace("1121", "1200"))
    again = made("instances", model="m", url=engine_server.url, instance="pod-0")
    assert again["epoch"] != first["epoch"]
    assert (again["baseline"], again["status"]) == ({"prompt": 1000, "generation": 1200}, "ready")
    entry = InstanceEntry.from_json(raw_redis.hget(redis_keys.INSTANCES, "pod-0"))
    assert (entry.status.value, entry.epoch, entry.lease_until_ms) == ("ready", again["epoch"], 0)
    (row,) = admin.get("/admin/v1/instances").json()["data"]
    assert (row["status"], row["removed"]) == ("ready", False)
    with database.connect() as connection:
        runs = [
            (run.epoch, run.produced.prompt, run.produced.generation, run.state)
            for run in read_runs(connection)
        ]
    assert runs == [(first["epoch"], 56, 79, "closed")]
    admin.delete("/admin/v1/instances/pod-0")
    third = made("instances", model="m", url=engine_server.url, instance="pod-0")
    assert len({first["epoch"], again["epoch"], third["epoch"]}) == 3


def test_an_id_is_not_used_again_while_requests_of_before_run(
    admin: TestClient, made: Make, engine_server, raw_redis
):
    first = made("instances", model="m", url=engine_server.url, instance="pod-0")
    raw_redis.zadd(redis_keys.open_requests("m"), {"req_1": 10**15})
    head = {"instance": "pod-0", "epoch": first["epoch"], "started_ms": 1_800_000_000_000}
    raw_redis.hset(redis_keys.reservation("m", "req_1"), mapping={"head": json.dumps(head), "p": 3, "o": 4})
    assert admin.delete("/admin/v1/instances/pod-0").json()["open_requests"] == 1
    body = {"model": "m", "url": engine_server.url, "instance": "pod-0"}
    refused = admin.post("/admin/v1/instances", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (409, "instance")
    assert "still run there: 1." in refused.json()["error"]["message"]
    raw_redis.delete(redis_keys.open_requests("m"))
    assert admin.post("/admin/v1/instances", json=body).status_code == 201


def test_a_workers_engine_is_not_added_a_second_time(admin: TestClient, engine_server, raw_redis):
    worker = {
        "instance": "w-1", "model": "m", "pool": "m", "cell": "m", "url": engine_server.url, "key": "secret",
        "epoch": "1", "status": "ready", "lease_until_ms": 10**15,
        "load": {"running": 2, "waiting": 1, "kv_usage": 0.5},
    }  # fmt: skip
    raw_redis.hset(redis_keys.INSTANCES, "w-1", json.dumps(worker))
    answer = admin.post("/admin/v1/instances", json={"model": "m", "url": engine_server.url})
    assert (answer.status_code, answer.json()["error"]["param"]) == (409, "url")
    taken = admin.post(
        "/admin/v1/instances", json={"model": "m", "url": "http://127.0.0.1:1", "instance": "w-1"}
    )
    assert (taken.status_code, taken.json()["error"]["param"]) == (409, "instance")
    assert admin.delete("/admin/v1/instances/w-1").status_code == 404
    assert "secret" not in admin.get("/admin/v1/instances").text
    (pool,) = admin.get("/admin/v1/pools").json()["data"]
    assert (pool["pool"], pool["models"], pool["ready"], pool["running"], pool["waiting"]) == (
        "m",
        ["m"],
        1,
        2,
        1,
    )


def test_a_pool_says_alike_in_both_places_what_it_has_and_what_of_it_is_there(admin: TestClient, raw_redis):
    for name, status in (("a", "ready"), ("b", "down")):
        entry = {
            "instance": name, "model": "m", "pool": "m", "cell": "m", "url": "http://x", "epoch": "1",
            "status": status, "lease_until_ms": 0,
        }  # fmt: skip
        raw_redis.hset(redis_keys.INSTANCES, name, json.dumps(entry))

    def counts() -> list[tuple[int, int, int]]:
        (listed,) = admin.get("/admin/v1/pools").json()["data"]
        shown = admin.get("/admin/v1/pools/m").json()
        return [(pool["instances"], pool["registered"], pool["ready"]) for pool in (listed, shown)]

    # Nobody has said how many.
    assert counts() == [(2, 2, 1)] * 2
    assert admin.patch("/admin/v1/pools/m", json={"instances": 100}).json()["ready"] == 1
    assert counts() == [(100, 2, 1)] * 2


def test_a_lapsed_worker_is_not_shown(admin: TestClient, raw_redis):
    lapsed = {
        "instance": "w-1",
        "model": "m",
        "pool": "m",
        "cell": "m",
        "url": "http://x",
        "epoch": "1",
        "status": "ready",
        "lease_until_ms": 1,
    }
    raw_redis.hset(redis_keys.INSTANCES, mapping={"w-1": json.dumps(lapsed), "bad": "not json"})
    assert admin.get("/admin/v1/instances").json()["data"] == []
