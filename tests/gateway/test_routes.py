"""The table of routes is complete: what the app serves is what the table says, and each route has its row,
its facts and its right.
"""

from pathlib import Path

import pytest

from billing.wire.routes import OFFERED_ROUTES, ROUTE_FACTS, Dialect, dialect_of_path
from gateway.app import build_app
from gateway.lifecycle import Lifecycle
from gateway.metrics import Metrics
from gateway.request import AnswerForm, Route, RouteSpec
from gateway.routes import ROUTES, ROUTES_BY_PATH
from gateway.settings import GatewaySettings
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway
from tests.gateway.protocol.bodies import SMALLEST

NEED_NO_KEY = frozenset({"/healthz", "/readyz"})


def test_every_route_has_one_row_and_one_path() -> None:
    assert set(ROUTES) == set(ROUTE_FACTS) == set(Route)
    assert {route.facts.path.encode(): route for route in ROUTES.values()} == dict(ROUTES_BY_PATH)
    assert len(ROUTES_BY_PATH) == len(ROUTES)


@pytest.mark.parametrize("route", ROUTES.values(), ids=lambda route: route.name)
def test_a_row_does_not_contradict_itself(route: RouteSpec) -> None:
    assert route.facts.offered_as in OFFERED_ROUTES, "a model's entry can offer it"
    assert route.metered == (route.answer not in {AnswerForm.UNREAD, AnswerForm.RENDERED}), (
        "what is metered is read"
    )
    assert bool(route.output_params) == route.generates, "what writes can be bounded"
    assert route.metered or not route.generates
    assert set(route.required) <= SMALLEST[route.name].keys()
    assert not route.continued or route.generates
    assert dialect_of_path(route.facts.path) is route.dialect
    assert dialect_of_path("/nowhere") is Dialect.OPENAI


def test_the_document_of_the_app_holds_every_route_and_says_that_it_needs_a_key(tmp_path: Path) -> None:
    app = build_app(GatewaySettings(home=tmp_path), Lifecycle(), Metrics())
    paths = app.openapi()["paths"]
    inference = {path for path, item in paths.items() if "inference" in item.get("post", {}).get("tags", ())}
    assert inference == {route.facts.path for route in ROUTES.values()}
    for path in inference:
        assert paths[path]["post"]["security"] == [{"bearer": []}, {"x-api-key": []}]


def test_every_route_of_the_app_asks_for_a_key(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    with start_gateway().client("sk-taas-nobody") as client:
        paths = client.get("/openapi.json").json()["paths"]
        assert paths.keys() >= NEED_NO_KEY
        for path in paths.keys() - NEED_NO_KEY:
            for method in paths[path]:
                asked = path.replace("{name}", MODEL).replace("{request_id}", "req_" + "0" * 24)
                # Admin routes refuse what has the form of an API key, whether there is such a key or not.
                refused = 403 if path.startswith("/v1/organization/") else 401
                assert client.request(method, asked, content=b"{}").status_code == refused, path
    assert engine.requests() == []
