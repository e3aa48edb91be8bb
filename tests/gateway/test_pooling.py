"""A model with two engines under one name: text comes from the one that generates, embeddings from the one
that pools. On real Valkey and simulated engines.
"""

import base64
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from billing.wire import redis_keys
from billing.wire.routes import POOLING_ROUTES, TEXT_ROUTES
from billing.wire.usage_event import Ending, UsageSource
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway, wait_until
from tests.gateway.asking import ask

EVERY_ROUTE = sorted({*TEXT_ROUTES, *POOLING_ROUTES})


@pytest.fixture
def pooling(make_engine: EngineMaker, catalogue: Catalogue) -> SimEngine:
    """The engine that pools, and a model that offers every route."""
    catalogue.model(routes=EVERY_ROUTE)
    made = make_engine("--pooling")
    catalogue.instance(
        made.url, made.key, name="pools", routes=sorted(POOLING_ROUTES), counts=True, abort=False
    )
    return made


@pytest.fixture
def client(catalogue: Catalogue, pooling: SimEngine, start_gateway: StartGateway) -> Iterator[OpenAI]:
    """The official SDK, which asks for base64 unless told otherwise."""
    assert pooling.alive()
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as made:
        yield made


def test_each_route_of_a_model_goes_to_the_engine_that_serves_it(
    engine: SimEngine, pooling: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key, name="generates", routes=sorted(TEXT_ROUTES))
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    for route in ("chat", "completions", "responses", "messages"):
        assert ask(gateway, key, route, True).status == 200
    with gateway.client(key) as caller:
        for _ in range(4):
            answer = caller.post("/v1/embeddings", json={"model": MODEL, "input": "the sea"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == MODEL
    assert {request["path"] for request in pooling.requests()} == {"/v1/embeddings"}
    assert len(engine.requests()) == 4


def test_several_engines_that_pool_share_the_requests_and_stand_in_for_each_other(
    pooling: SimEngine, make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    other = make_engine("--pooling")
    catalogue.instance(
        other.url, other.key, name="pools-too", routes=sorted(POOLING_ROUTES), counts=True, abort=False
    )
    key = catalogue.key(catalogue.tenant("ten_a"))
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/embeddings", {"input": [[1, 2, 3], [4]]}),
        ("/v1/rerank", {"query": "the sea", "documents": ["salt", "a stone"]}),
        ("/v1/score", {"text_1": "the sea", "text_2": "salt"}),
    ]
    with start_gateway().client(key) as caller:
        for _ in range(4):
            for path, body in bodies:
                answer = caller.post(path, json={"model": MODEL, **body})
                assert answer.status_code == 200, answer.text
        assert pooling.requests()
        assert other.requests()
        pooling.kill()
        for path, body in bodies:
            assert caller.post(path, json={"model": MODEL, **body}).status_code == 200


@pytest.mark.parametrize("left", ["generates", "pools"])
def test_a_route_that_no_engine_serves_is_503_and_the_others_are_served(
    left: str, engine: SimEngine, pooling: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key, name="generates", routes=sorted(TEXT_ROUTES))
    gone = {"generates": "pools", "pools": "generates"}[left]
    catalogue.redis.hdel(redis_keys.INSTANCES, gone)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    chat = ask(gateway, key, "chat", False)
    with gateway.client(key) as caller:
        embedding = caller.post("/v1/embeddings", json={"model": MODEL, "input": "the sea"})
    statuses = {"generates": (200, 503), "pools": (503, 200)}[left]
    assert (chat.status, embedding.status_code) == statuses
    refused = chat if left == "pools" else None
    said = refused.json if refused is not None else embedding.json()
    assert said["error"]["code"] == "no_instance"


def test_an_entry_without_routes_serves_all_of_its_models(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.model(routes=EVERY_ROUTE)
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    assert ask(gateway, key, "chat", False).status == 200
    with gateway.client(key) as caller:
        caller.post("/v1/embeddings", json={"model": MODEL, "input": "the sea"})
    assert engine.requests()[-1]["path"] == "/v1/chat/completions", "which has no such route"


def test_the_sdk_gets_the_numbers_that_it_asks_for_in_base64_and_its_prompt_is_billed(
    client: OpenAI, pooling: SimEngine, catalogue: Catalogue
) -> None:
    in_base64 = client.embeddings.create(model=MODEL, input=["the sea", "a stone"], user="u")
    in_numbers = client.embeddings.create(model=MODEL, input=["the sea", "a stone"], encoding_format="float")
    assert [one.embedding for one in in_base64.data] == [
        pytest.approx(one.embedding, abs=1e-6) for one in in_numbers.data
    ]
    assert pooling.requests()[0]["body"]["encoding_format"] == "base64"
    assert "user" not in pooling.requests()[0]["body"]
    events = catalogue.await_events(2)
    for answer, event in zip((in_base64, in_numbers), events, strict=True):
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == event.billed.prompt > 0
        assert (event.billed.output, event.samples) == (0, 2)
        assert event.usage_source is UsageSource.ENGINE
    assert sum(event.produced.prompt for event in events) == pooling.counters()["prompt"]


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("/v1/rerank", {"query": "the sea", "documents": ["a stone", "the sea", "salt"], "top_n": 2}),
        ("/v1/score", {"text_1": "the sea", "text_2": ["a stone", "the sea", "salt"]}),
    ],
)
def test_texts_are_compared_and_every_text_is_billed(
    path: str, texts: dict[str, Any], pooling: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    with start_gateway().client(key) as caller:
        answer = caller.post(path, json={"model": MODEL, **texts})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["model"] == MODEL
    if path == "/v1/rerank":
        first, second = told["results"]
        assert first["document"] == {"text": "the sea"}
        assert first["relevance_score"] == pytest.approx(1)
        assert second["relevance_score"] < 0.99
    else:
        assert [each["index"] for each in told["data"]] == [0, 1, 2]
        assert told["data"][1]["score"] == pytest.approx(1)
    (event,) = catalogue.await_events(1)
    assert event.billed.prompt == told["usage"]["prompt_tokens"] == pooling.counters()["prompt"]
    assert (event.billed.output, event.samples) == (0, 4)
    (sent,) = pooling.requests()
    assert len(sent["body"]["cache_salt"]) > 16


def test_base64_passes_byte_for_byte(
    pooling: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    body = {"model": MODEL, "input": [1, 2, 3], "encoding_format": "base64"}
    with start_gateway().client(key) as caller:
        (ours,) = caller.post("/v1/embeddings", json=body).json()["data"]
    (theirs,) = pooling.post("/v1/embeddings", body).json()["data"]
    assert ours == theirs
    assert len(struct.unpack("<8f", base64.b64decode(ours["embedding"]))) == 8


def test_dimensions_of_a_model_that_has_only_one_size_are_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input="the sea", dimensions=4)
    assert refused.value.param == "dimensions"
    assert "one size" in refused.value.message
    assert MODEL not in refused.value.message


def test_a_list_of_which_one_input_is_too_long_is_refused_as_a_whole_and_free(
    client: OpenAI, pooling: SimEngine, catalogue: Catalogue
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input=["the sea", "word " * 3000])
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    (event,) = catalogue.await_events(1)
    assert (event.ending, event.billed.prompt) == (Ending.REFUSED_BY_ENGINE, 0)
    assert event.produced.prompt == pooling.counters()["prompt"] == 0


def test_of_a_list_whose_caller_leaves_only_what_was_read_is_billed(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    """vLLM has no abort by id where it pools: the connection is closed, and the count is asked for."""
    slow = make_engine("--pooling", "--prefill-tokens-per-s", "2000", "--slots", "1")
    catalogue.model(routes=EVERY_ROUTE)
    catalogue.instance(slow.url, slow.key, routes=sorted(POOLING_ROUTES), counts=True, abort=False)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    inputs = [[number] * 500 for number in range(1, 41)]  # a quarter of a second each
    with (
        gateway.client(key, timeout_s=1.0) as caller,
        pytest.raises(httpx.TimeoutException),
    ):
        caller.post("/v1/embeddings", json={"model": MODEL, "input": inputs})
    (event,) = catalogue.await_events(1)
    wait_until(lambda: slow.counters()["running"] == 0, "idle engine")
    counted = slow.counters()["prompt"]
    assert event.ending is Ending.CLIENT_DISCONNECT
    assert 0 < counted < 40 * 500
    assert event.produced.prompt == event.billed.prompt == counted
    assert event.usage_source is UsageSource.ENGINE
