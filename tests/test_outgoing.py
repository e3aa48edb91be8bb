"""No client of ours heeds the environment's proxies: our requests carry keys, and a proxy would read them."""

import ast
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import redis

from loadtest.children import answers
from serving.calibration.probe import EngineAddress, Probe, ProbeFailed
from serving.engine_client import EngineClient, EngineUnanswering
from tests.billing.engine_server import ScriptedEngine, register, serve
from tests.fixtures.gateway import Catalogue, StartGateway, wait_until
from tests.fixtures.valkey import free_port
from tests.source_tree import PACKAGES, Source, sources, tell

pytestmark = pytest.mark.sources

# What httpx and its kind take for a client or a request.
HTTPX_CALLS = {
    "AsyncClient", "Client", "delete", "get", "head", "options", "patch", "post", "put", "request", "stream",
}  # fmt: skip
# They heed proxies, or keep a netrc file, and cannot all be told not to.
OTHER_CLIENTS = {"http.client", "requests", "urllib.request", "urllib3"}


class Recorder:
    """A proxy, or a server, that answers 404 to everything and keeps the request lines."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                recorder.asked.append(self.requestline)
                self.send_response(404)
                self.send_header("content-length", "0")
                self.end_headers()

            do_GET = do_POST = do_CONNECT = do_HEAD = _answer

            def log_message(self, format: str, *args: object) -> None:
                """Nothing on the terminal."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            name: self.url
            for word in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
            for name in (word, word.lower())
        } | {"NO_PROXY": "", "no_proxy": ""}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def proxy() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture
def server() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture
def proxied(proxy: Recorder, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """This process's own environment names the proxy, too."""
    for name, value in proxy.environment.items():
        monkeypatch.setenv(name, value)
    return proxy


def _code() -> Iterator[Source]:
    return (source for source in sources() if source.package in PACKAGES)


def _of_httpx(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "httpx"
        and function.attr in HTTPX_CALLS
    )


def _says(call: ast.Call, value: bool) -> bool:
    return any(
        word.arg == "trust_env" and isinstance(word.value, ast.Constant) and word.value.value is value
        for word in call.keywords
    )


def test_every_http_client_leaves_the_environment_alone() -> None:
    findings, seen = [], 0
    for source in _code():
        for call in source.walk(ast.Call):
            assert isinstance(call, ast.Call)
            if _of_httpx(call):
                seen += 1
                if not _says(call, False):
                    findings.append(f"{source.path}:{call.lineno} has no trust_env=False")
            elif _says(call, True):
                findings.append(f"{source.path}:{call.lineno} has trust_env=True")
    assert seen > 10
    assert not findings, tell(
        findings, "Proxies, netrc and certificate files of the environment are not for us:"
    )


def test_no_other_http_client_is_used() -> None:
    findings = []
    for source in _code():
        for node in source.walk((ast.Import, ast.ImportFrom)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                assert isinstance(node, ast.ImportFrom)
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
                if node.module == "httpx":
                    findings.append(
                        f"{source.path}:{node.lineno} takes a name out of httpx: write httpx.NAME"
                    )
            findings += [
                f"{source.path}:{node.lineno} imports {name}" for name in names if name in OTHER_CLIENTS
            ]
    assert not findings, tell(findings, "HTTP is spoken with httpx, aiohttp or our own code:")


def test_the_gateway_asks_billing_itself(
    start_gateway: StartGateway, catalogue: Catalogue, proxy: Recorder, server: Recorder
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_ADMIN_URL=server.url, TAAS_SERVICE_KEY="service-key", **proxy.environment)
    with httpx.Client(
        base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=30
    ) as client:
        assert client.get("/v1/usage/requests/req_" + "0" * 24).status_code == 404
        assert client.get("/v1/capacity").status_code == 404
    assert [line.split("?")[0] for line in server.asked] == [
        "GET /admin/v1/requests/req_000000000000000000000000",
        "GET /admin/v1/capacity",
    ]
    assert proxy.asked == []


def test_the_command_line_asks_billing_itself(proxy: Recorder, server: Recorder) -> None:
    told = {"TAAS_ADMIN_URL": server.url, "TAAS_ADMIN_KEY": "admin-key", **proxy.environment}
    command = [str(Path(sys.executable).with_name("taas")), "tenant", "list"]
    subprocess.run(command, env=os.environ | told, capture_output=True, timeout=60, check=False)
    assert len(server.asked) == 1
    assert proxy.asked == []


def test_billing_asks_engines_itself(
    database_url: str, valkey_url: str, valkey: redis.Redis, tmp_path: Path, proxy: Recorder
) -> None:
    told = {
        "TAAS_DATABASE_URL": database_url, "TAAS_REDIS_URL": valkey_url, "TAAS_ADMIN_KEY": "admin-key",
        "TAAS_ADMIN_PORT": str(free_port()), "TAAS_BILLING_METRICS_PORT": str(free_port()),
        "TAAS_COUNTERS_INTERVAL_MS": "100",
    }  # fmt: skip
    with (
        (tmp_path / "billing.log").open("wb") as log,
        serve(ScriptedEngine(prompt=1, generation=1)) as engine,
    ):
        register(valkey, engine, lease_until_ms=4_000_000_000_000)
        command = [sys.executable, "-m", "billing"]
        process = subprocess.Popen(command, env=os.environ | told | proxy.environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: len(engine.asked) > 3, "questions to the engine", timeout_s=60)
        finally:
            process.kill()
            process.wait()
    assert proxy.asked == []


async def test_the_worker_and_the_calibration_ask_their_engine_themselves(
    proxied: Recorder, server: Recorder
) -> None:
    async with EngineClient(server.url, "engine-key") as client:
        with pytest.raises(EngineUnanswering):
            await client.reading()
    async with Probe(EngineAddress(server.url, "engine-key", "sim", abort=True)) as probe:
        with pytest.raises(ProbeFailed):
            await probe.version()
    assert len(server.asked) == 2
    assert proxied.asked == []


def test_the_load_test_asks_the_gateway_itself(proxied: Recorder, server: Recorder) -> None:
    assert not answers(f"{server.url}/readyz")()
    assert len(server.asked) == 1
    assert proxied.asked == []


def test_the_recorder_would_see_a_client_that_heeds_it(proxied: Recorder, server: Recorder) -> None:
    assert httpx.get(f"{server.url}/x").status_code == 404
    assert proxied.asked == [f"GET {server.url}/x HTTP/1.1"]
