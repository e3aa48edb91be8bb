"""Each route of the batch service is one that gateways pass on, and lets in nobody but them."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import create_engine
from starlette.routing import Route

from billing.batch.api.app import build_app
from billing.batch.metrics import BatchMetrics
from billing.batch.objects import Objects
from billing.batch.service import Service
from billing.batch.settings import BatchSettings
from billing.wire.batch_caller import caller_headers
from gateway.batches import BATCH_ROUTES

KEY = "a-service-key"
WHO = caller_headers("ten_a", "prj_a", "key_a", restricted=False)


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    settings = BatchSettings(home=tmp_path, service_key=KEY)
    # Whoever gets past the rights meets a database that is away.
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    return build_app(Service(engine, Objects(settings), settings, BatchMetrics()))


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    found = {
        (method, route.path)
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    return found - {("GET", "/healthz")}


def test_every_route_is_passed_on_and_every_one_that_is_passed_on_is_there(app: FastAPI) -> None:
    assert routes_of(app) == {(method, path) for method, path, _ in BATCH_ROUTES}


@pytest.mark.parametrize(
    "headers",
    [{}, WHO, {"authorization": "Bearer wrong"} | WHO, {"authorization": f"Bearer {KEY}"},
     {"authorization": "Bearer "} | WHO, {"authorization": f"Bearer {KEY}x"} | WHO],
)  # fmt: skip
def test_fault_20_nobody_but_a_gateway_gets_in(app: FastAPI, headers: dict[str, str]) -> None:
    with TestClient(app, raise_server_exceptions=False) as client:
        for method, path in routes_of(app):
            answer = client.request(method, re.sub(r"\{[^}]+\}", "nothing", path), headers=headers)
            assert answer.status_code == 401, path


def test_fault_20_a_gateway_gets_in_and_a_store_that_is_away_is_503(app: FastAPI) -> None:
    headers = {"authorization": f"Bearer {KEY}"} | WHO
    with TestClient(app, raise_server_exceptions=False) as client:
        for path in ("/v1/files", "/v1/batches/batch_1", "/v1/messages/batches"):
            assert client.get(path, headers=headers).status_code == 503


def test_fault_20_an_unset_service_key_lets_in_nobody(tmp_path: Path) -> None:
    settings = BatchSettings(home=tmp_path)
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    app = build_app(Service(engine, Objects(settings), settings, BatchMetrics()))
    with TestClient(app) as client:
        assert client.get("/v1/files", headers={"authorization": "Bearer "} | WHO).status_code == 401
