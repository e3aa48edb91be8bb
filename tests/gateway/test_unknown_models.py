"""Nobody but its owner can know that a private model exists: on every route it is answered as a model that
does not exist, in the same words, by the same steps and in the same time.
"""

import http.client
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any, cast

import httpx
import orjson
import pytest

from billing.wire.routes import POOLING_ROUTES, TEXT_ROUTES, Route
from gateway.authenticate import Caller
from gateway.catalogue.entries import ApiKey, Model, Tenant
from gateway.catalogue.feed import Catalogue as Feed
from gateway.catalogue.visible_models import VisibleModels
from gateway.errors import ModelNotFound
from gateway.routes import ROUTES
from tests.fixtures.gateway import MODEL, WEIGHTS, Catalogue, GatewayProcess, StartGateway
from tests.gateway.ranks import mann_whitney_p

# Equally long, so that their answers are.
THEIRS, UNKNOWN = "acme-fine-tune", "acme-fine-tuna"
MINE = "mine"
_VALUES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "prompt": "hi", "input": "hi",
    "query": "hi", "documents": ["hi"], "text_1": "hi", "text_2": "hi",
}  # fmt: skip
SHOWN_PATHS = (f"/v1/models/{THEIRS}", f"/v1/models/{THEIRS}/")
# Of each answer its own.
_OWN_HEADERS = {"x-request-id", "request-id", "date", "openai-processing-ms"}
REQUESTS = 2_000
# A test that runs for years must not fail by chance.
P_LEAST = 1e-5


@pytest.fixture
def gateway(catalogue: Catalogue, start_gateway: StartGateway) -> GatewayProcess:
    everything = sorted({*TEXT_ROUTES, *POOLING_ROUTES})
    catalogue.model(routes=everything)
    catalogue.model(THEIRS, owner="ten_acme", visible=["ten_acme"], routes=everything, max_body_bytes=9**9)
    catalogue.model(MINE, owner="ten_a", visible=["ten_a"], routes=everything)
    return start_gateway()


@pytest.fixture
def key(catalogue: Catalogue) -> str:
    return catalogue.key(catalogue.tenant("ten_a"))


def body_of(route: Route, model: str) -> dict[str, Any]:
    spec = ROUTES[route]
    required = spec.required or (spec.prompt_param,)
    return {"model": model} | {name: _VALUES[name] for name in required}


def told(answer: httpx.Response) -> tuple[int, str, dict[str, str]]:
    """What a caller can see of it, less what is of each answer its own."""
    headers = {name: value for name, value in answer.headers.items() if name not in _OWN_HEADERS}
    text = answer.text.replace(answer.headers["x-request-id"], "ID")
    return answer.status_code, text.replace(THEIRS, "NAME").replace(UNKNOWN, "NAME"), headers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_on_every_inference_route_it_is_answered_as_one_that_does_not_exist(
    gateway: GatewayProcess, key: str, catalogue: Catalogue, route: Route, stream: bool
) -> None:
    path = ROUTES[route].facts.path
    extra = {"stream": True} if stream and ROUTES[route].facts.generates else {}
    with gateway.client(key) as client:
        theirs, unknown = (client.post(path, json=body_of(route, name) | extra) for name in (THEIRS, UNKNOWN))
        # Its owner's request fails later, because nothing serves it.
        mine = client.post(path, json=body_of(route, MINE) | extra)
    assert told(theirs) == told(unknown)
    assert theirs.status_code == 404
    assert mine.status_code == 503, mine.text
    with gateway.client(catalogue.key(catalogue.tenant("ten_acme"))) as owner:
        assert owner.post(path, json=body_of(route, THEIRS) | extra).status_code == 503


@pytest.mark.parametrize("dialect", [{}, {"anthropic-version": "2023-06-01"}])
def test_on_the_listing_routes_too(gateway: GatewayProcess, key: str, dialect: dict[str, str]) -> None:
    with gateway.client(key) as client:
        client.headers.update(dialect)
        for path in SHOWN_PATHS:
            for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
                asked = (client.request(method, each) for each in (path, path.replace(THEIRS, UNKNOWN)))
                theirs, unknown = asked
                assert told(theirs) == told(unknown), (method, path)
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [MINE, MODEL]
        assert client.get(f"/v1/models/{MINE}").status_code == 200
        for model in (THEIRS, UNKNOWN):
            assert client.get("/v1/capacity", params={"contract": model}).status_code == 503


def test_a_key_that_names_it_sees_as_little(gateway: GatewayProcess, catalogue: Catalogue) -> None:
    named = catalogue.key(catalogue.tenant("ten_a"), models=[THEIRS, UNKNOWN, MINE])
    with gateway.client(named) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [MINE]
        theirs, unknown = (
            client.post("/v1/chat/completions", json=body_of(Route.CHAT, name)) for name in (THEIRS, UNKNOWN)
        )
    assert told(theirs) == told(unknown)


def test_the_largest_body_does_not_tell_of_it(gateway: GatewayProcess, key: str) -> None:
    """Its entry allows larger bodies than any other; a stranger's large body is refused as before."""
    with gateway.client(key) as client:
        padded = body_of(Route.CHAT, THEIRS) | {"user": "x" * 5_000_000}
        assert client.post("/v1/chat/completions", json=padded).status_code == 413


# The steps


def _model(name: str, **fields: Any) -> Model:
    entry = {
        "name": name, "pool": name, "cell": name, "visible": "everyone", "owner": None, "routes": ["chat"],
        "engine_model": name, "context_tokens": 4096, "default_max_tokens": 256, "weights": WEIGHTS,
    } | fields  # fmt: skip
    return Model.read(orjson.dumps(entry))


def _caller(**fields: Any) -> Caller:
    tenant = {"tenant": "ten_a", "kind": "external", "status": "active"}
    key = {"key_id": "k", "hash": "h", "tenant": "ten_a", "project": "p", **fields}
    return Caller(ApiKey.read(orjson.dumps(key)), Tenant.read(orjson.dumps(tenant)))


def _catalogue(*models: Model) -> Feed:
    return cast("Feed", SimpleNamespace(visible=VisibleModels({m.name: m for m in models}), loaded=True))


def _steps(work: Callable[[], object]) -> list[tuple[str, int]]:
    """The lines of our code that it runs, in order."""
    lines: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and "/gateway/" in frame.f_code.co_filename:
            lines.append((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("kind", ["everyone", "internal"])
@pytest.mark.parametrize("named", [None, [THEIRS, UNKNOWN]])
def test_a_look_up_takes_the_same_steps_for_both(kind: str, named: list[str] | None) -> None:
    catalogue = _catalogue(
        _model(MODEL, visible=kind),
        _model(MINE, owner="ten_a", visible=["ten_a"]),
        _model(THEIRS, owner="ten_acme", visible=["ten_acme"]),
        _model("retired", status="retired"),
    )
    caller = _caller(models=named)

    def look_up(name: str) -> None:
        with pytest.raises(ModelNotFound):
            caller.find_model(catalogue, name, 1)

    theirs, unknown, retired = (_steps(lambda n=n: look_up(n)) for n in (THEIRS, UNKNOWN, "retired"))  # type: ignore[misc]
    assert len(theirs) > 5
    assert theirs == unknown == retired


def test_a_list_takes_no_step_for_models_that_are_not_in_it() -> None:
    few = _catalogue(_model(MODEL), _model(MINE, owner="ten_a", visible=["ten_a"]))
    theirs = [_model(f"t{n}", owner="ten_b", visible=["ten_b"]) for n in range(50)]
    many = _catalogue(_model(MODEL), _model(MINE, owner="ten_a", visible=["ten_a"]), *theirs)
    caller = _caller()
    assert [model.name for model in caller.models(many, 1)] == [MINE, MODEL]
    assert _steps(lambda: caller.models(few, 1)) == _steps(lambda: caller.models(many, 1))


# The time


def _times_ns(gateway: GatewayProcess, key: str, path: str, bodies: list[bytes]) -> list[int]:
    """How long each answer takes, on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    took = []
    try:
        for body in bodies:
            began = time.perf_counter_ns()
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read()
            took.append(time.perf_counter_ns() - began)
            assert answer.status == 404
    finally:
        connection.close()
    return took


def test_of_2000_requests_no_test_can_tell_not_yours_from_unknown(gateway: GatewayProcess, key: str) -> None:
    bodies = {name: json.dumps(body_of(Route.CHAT, name)).encode() for name in (THEIRS, UNKNOWN)}
    # In pairs, each in random order: what disturbs the machine disturbs both.
    names = [name for _ in range(REQUESTS // 2) for name in random.sample([THEIRS, UNKNOWN], 2)]
    path = "/v1/chat/completions"
    _times_ns(gateway, key, path, [bodies[UNKNOWN], bodies[THEIRS]] * 100)
    took = _times_ns(gateway, key, path, [bodies[name] for name in names])
    theirs, unknown = (
        [t for t, asked in zip(took, names, strict=True) if asked == name] for name in (THEIRS, UNKNOWN)
    )
    p = mann_whitney_p(theirs, unknown)
    medians = [statistics.median(each) / 1000 for each in (theirs, unknown)]
    print(
        f"medians {medians[0]:.1f} and {medians[1]:.1f} µs of {len(theirs)} and {len(unknown)}, p = {p:.3f}"
    )
    assert p > P_LEAST, medians
    # It would tell, if there were something to tell: a tenth of what an answer takes.
    later = [each + statistics.median(unknown) / 10 for each in theirs]
    assert mann_whitney_p(later, unknown) < P_LEAST
