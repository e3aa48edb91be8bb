"""What `taas status` shows, and its exit status."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis

from deploy.local.settings import LocalSettings
from deploy.local.status import look, not_for_sale
from tests.deploy.conftest import Home
from tests.fixtures.valkey import ValkeyProcess

ROW = {"model": "m", "url": "http://127.0.0.1:1"}
ROWS = [
    {**ROW, "instance": "serves", "status": "ready", "removed": False},
    {**ROW, "instance": "gone", "status": "draining", "removed": True},
    {**ROW, "instance": "reclaimed", "status": "draining", "removed": False, "own_user": False},
]
MODELS = [
    {"name": "sold", "status": "active", "visible": "everyone", "for_sale_from_ms": 1},
    {"name": "unpriced", "status": "active", "visible": "everyone", "for_sale_from_ms": None},
    {"name": "fine-tune", "status": "active", "visible": ["ten_1"], "for_sale_from_ms": None},
    {"name": "own", "status": "active", "visible": "internal", "for_sale_from_ms": None},
    {"name": "retired", "status": "retired", "visible": "everyone", "for_sale_from_ms": None},
]


class AdminApi(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        rows = MODELS if self.path.startswith("/admin/v1/models") else ROWS
        body = json.dumps({"data": rows} if self.path.startswith("/admin") else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def settings(home: Home) -> Iterator[LocalSettings]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), AdminApi)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield LocalSettings(home=home.folder, admin_port=server.server_port, engine_url="http://127.0.0.1:1")
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_removed_instance_is_not_shown(settings: LocalSettings) -> None:
    shown = [(part.where.split()[0], part.state) for part in look(settings) if part.name == "instance"]
    assert shown == [("serves", "up"), ("reclaimed", "draining")]


def test_a_private_models_engine_without_a_user_of_its_own_is_said(settings: LocalSettings) -> None:
    told = [part.where.split()[0] for part in look(settings) if "without an OS user of its own" in part.where]
    assert told == ["reclaimed"]


@pytest.mark.parametrize(("processes", "where"), [(1, "9201"), (4, "9201 to 9204")])
def test_the_metrics_ports_of_all_gateway_processes_are_shown(
    settings: LocalSettings, processes: int, where: str
) -> None:
    settings = settings.model_copy(update={"gateway_metrics_port": 9201, "gateway_processes": processes})
    (gateway,) = (part for part in look(settings) if part.name == "gateway")
    assert gateway.where.endswith(f", metrics on {where}")


def test_models_that_would_be_sold_but_have_no_price_are_named(settings: LocalSettings) -> None:
    assert not_for_sale(settings) == ["unpriced", "fine-tune"]


def test_a_given_redis_is_shown_with_what_it_may_lose_or_why_it_cannot_be_used(
    settings: LocalSettings, own_valkey: ValkeyProcess
) -> None:
    def shown(url: str) -> tuple[str, str]:
        part = look(settings.model_copy(update={"redis_url": url}))[0]
        return part.state, part.where

    assert shown(own_valkey.url) == ("up", "TAAS_REDIS_URL")
    with redis.Redis(port=own_valkey.port) as client:
        client.config_set("appendfsync", "no")
    state, where = shown(own_valkey.url)
    assert state == "up"
    assert "warning: Redis has appendfsync no, not everysec" in where
    state, where = shown("redis://:open#sesame@h")
    assert state == "down"
    assert "percent-encode" in where
    assert "sesame" not in where
