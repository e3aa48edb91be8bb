"""`up` from nothing on real vLLM: the model writes, and its embeddings come from a second engine under the
same name. One home for all of these tests, which run in their order.
"""

import base64
import json
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import redis
from openai import OpenAI

from billing.wire import redis_keys
from deploy.local.credentials import read_env
from deploy.local.settings import DEFAULT_MODEL
from loadtest import plain_http
from tests.deploy.conftest import Home, new_home
from tests.deploy.test_up import check_served
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import wait_until
from tests.fixtures.lora import parts, write_adapter
from tests.fixtures.stack import ONE_PROCESS_LESS, keep_model
from tests.loadtest.test_engine_conformance import answer_shape

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with new_home() as made:
        made.environment |= {"TAAS_ADAPTERS": "1", **ONE_PROCESS_LESS}
        yield made


@pytest.fixture
def demo(home: Home) -> dict[str, str]:
    return read_env(home.folder / "demo.env")


@pytest.fixture
def client(demo: dict[str, str]) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=demo["OPENAI_BASE_URL"], api_key=demo["OPENAI_API_KEY"], max_retries=0, timeout=60
    ) as made:
        yield made


def receipt(demo: dict[str, str], request_id: str) -> dict[str, Any]:
    """As the tenant gets it, once it stands in the ledger."""
    headers = {"authorization": f"Bearer {demo['OPENAI_API_KEY']}"}
    url = f"{demo['OPENAI_BASE_URL']}/usage/requests/{request_id}"
    found: dict[str, Any] = {}

    def recorded() -> bool:
        answer = plain_http.get(url, headers=headers)
        found.clear()
        found.update(answer.json())
        return answer.status_code == 200 and found["state"] == "recorded"

    wait_until(recorded, f"receipt of {request_id}", timeout_s=30)
    return found


def audit(demo: dict[str, str]) -> dict[str, Any]:
    """The audit as it stands, with the engines' counters of now."""
    headers = {"authorization": f"Bearer {demo['TAAS_ADMIN_KEY']}"}
    report: dict[str, Any] = plain_http.get(
        f"{demo['TAAS_ADMIN_URL']}/admin/v1/audit", headers=headers
    ).json()
    return report


def of_the_pooling_engine(demo: dict[str, str]) -> dict[str, Any]:
    """Its line of the audit: it is the one that generates nothing."""
    (line,) = [each for each in audit(demo)["instances"] if not each["produced"]["generation"]]
    found: dict[str, Any] = line
    return found


def test_up_from_nothing_serves_text_on_real_vllm(home: Home) -> None:
    first = home.run("up", timeout_s=600)
    assert first.returncode == 0, first.stdout + first.stderr
    check_served(first.stdout)
    pids = home.pids()
    assert {"worker", "pooling"} <= pids.keys()
    again = home.run("up")
    assert again.returncode == 0
    check_served(again.stdout)
    assert home.pids() == pids, "with everything running there is only one request to make"
    shown = json.loads(home.run("status", "--json").stdout)["parts"]
    assert {part["state"] for part in shown} == {"up"}


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ("The sea is wide", 4),
        (["The sea is wide", "hi"], 5),
        ([1, 2, 3], 3),
        ([[1, 2, 3], [4]], 4),
    ],
)
def test_the_sdk_gets_embeddings_and_they_are_billed_by_their_input(
    client: OpenAI, demo: dict[str, str], given: Any, tokens: int
) -> None:
    answer = client.embeddings.create(model=demo["TAAS_MODEL"], input=given, user="u")
    count = len(given) if isinstance(given[0], str | list) and isinstance(given, list) else 1
    assert answer.model == demo["TAAS_MODEL"]
    assert [one.index for one in answer.data] == [*range(count)]
    for one in answer.data:
        assert len(one.embedding) == 576
        assert sum(value * value for value in one.embedding) == pytest.approx(1, abs=1e-3)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    found = receipt(demo, str(answer._request_id))  # type: ignore[attr-defined]
    assert found["billed"] == {"prompt": tokens, "cached": 0, "output": 0}
    assert (found["ending"], found["pricing"]) == ("complete", "priced")


def test_numbers_and_base64_say_the_same(client: OpenAI, demo: dict[str, str]) -> None:
    numbers = client.embeddings.create(model=demo["TAAS_MODEL"], input="the sea", encoding_format="float")
    raw = client.embeddings.with_raw_response.create(
        model=demo["TAAS_MODEL"], input="the sea", encoding_format="base64"
    )
    (one,) = json.loads(raw.text)["data"]
    unpacked = struct.unpack("<576f", base64.b64decode(one["embedding"]))
    assert unpacked == pytest.approx(numbers.data[0].embedding, abs=1e-6)


def test_texts_are_ranked_and_scored(client: OpenAI, demo: dict[str, str]) -> None:
    texts = ["a stone", "the sea"]
    ranked: Any = client.post(
        "/rerank", cast_to=object, body={"model": demo["TAAS_MODEL"], "query": "the sea", "documents": texts}
    )
    assert [result["index"] for result in ranked["results"]] == [1, 0]
    assert ranked["results"][0]["document"] == {"text": "the sea"}
    assert ranked["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-3)
    scored: Any = client.post(
        "/score", cast_to=object, body={"model": demo["TAAS_MODEL"], "text_1": "the sea", "text_2": texts}
    )
    assert [each["score"] for each in scored["data"]] == pytest.approx(
        [ranked["results"][1]["relevance_score"], ranked["results"][0]["relevance_score"]], abs=1e-3
    )
    assert ranked["usage"]["prompt_tokens"] == scored["usage"]["prompt_tokens"] == 6
    found = receipt(demo, ranked["id"].removeprefix("score-"))
    assert found["billed"] == {"prompt": 6, "cached": 0, "output": 0}


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"dimensions": 8}, "dimensions", "unsupported_value"),
        ({"input": "sea " * 9000}, "input", "context_length_exceeded"),
        ({"input": ["hi", "sea " * 9000]}, "input", "context_length_exceeded"),
        ({"input": [5] * 8193}, "input", "context_length_exceeded"),
        ({"input": [49_152]}, "input", "invalid_value"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": ["hi", ""]}, "input[1]", "invalid_value"),
        ({"input": ["hi"] * 2049}, "input", "array_above_max_length"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name_and_costs_nothing(
    client: OpenAI, demo: dict[str, str], changes: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(**{"model": demo["TAAS_MODEL"], "input": "hi", **changes})
    assert (refused.value.param, refused.value.code) == (param, code)
    assert demo["TAAS_MODEL"] not in refused.value.message


def test_a_caller_that_leaves_pays_for_what_was_read(demo: dict[str, str]) -> None:
    before = of_the_pooling_engine(demo)
    inputs = [[number] * 500 for number in range(5, 65)]
    body = json.dumps({"model": demo["TAAS_MODEL"], "input": inputs}).encode()
    gateway = urlsplit(demo["OPENAI_BASE_URL"])
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {demo['OPENAI_API_KEY']}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((str(gateway.hostname), int(gateway.port or 80))) as caller:
        caller.sendall(head.encode() + body)
        wait_until(
            lambda: of_the_pooling_engine(demo)["produced"]["prompt"] > before["produced"]["prompt"],
            "read input",
        )

    def settled() -> bool:
        now = of_the_pooling_engine(demo)
        return now["open"]["prompt"] == 0 and now["billed"]["prompt"] > before["billed"]["prompt"]

    wait_until(settled, "bill", instead=lambda: audit(demo))
    after = of_the_pooling_engine(demo)
    assert after["billed"] == after["produced"]
    assert 0 < after["billed"]["prompt"] - before["billed"]["prompt"] < 60 * 500
    assert after["residual"]["prompt"] == 0


def test_an_adapter_of_a_tenant_is_loaded_beside_the_model(
    home: Home, client: OpenAI, demo: dict[str, str]
) -> None:
    """It writes something else, only its owner knows of it, and it is billed to its own name."""
    model = demo["TAAS_MODEL"]
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(30):
        shapes |= parts(f"model.layers.{number}.self_attn.q_proj", rank=8, out=576, inside=576)
    for name, given in (("told", shapes), ("odd", parts("model.norm", rank=8, out=576, inside=576))):
        folder = write_adapter(home.folder / "adapters" / name, given, size=0.5)
        made = home.taas(
            "adapter", "add", "--model", model, "--name", name, "--path", str(folder), "--owner", "demo",
            "--wait", "60",
        )  # fmt: skip
        assert ("loaded by" in made.stdout) == (made.returncode == 0) == (name == "told"), made.stderr
    assert "another base" in made.stderr
    priced = home.taas("price", "set", "--model", f"{model}:told", "--input", "1", "--output", "2")
    assert priced.returncode == 0, priced.stderr
    wait_until(lambda: f"{model}:told" in [each.id for each in client.models.list()], "the adapter")

    def said(name: str) -> tuple[str, str]:
        answer = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "What is the sea?"}], max_tokens=8,
            temperature=0,
        )  # fmt: skip
        assert answer.model == name
        return str(answer.choices[0].message.content), str(answer._request_id)

    (base, _), (told, request_id), (again, _) = (said(name) for name in (model, f"{model}:told", model))
    assert base == again != told
    found = receipt(demo, request_id)
    assert (found["model"], found["pricing"], found["billed"]["output"]) == (f"{model}:told", "priced", 8)
    other = home.taas("tenant", "create", "other")
    assert other.returncode == 0, other.stderr
    key = json.loads(home.taas("key", "create", "--tenant", "other", "--json").stdout)["key"]
    with OpenAI(base_url=demo["OPENAI_BASE_URL"], api_key=key, max_retries=0) as stranger:
        assert not [each.id for each in stranger.models.list() if ":" in each.id]
        with pytest.raises(openai.NotFoundError):
            stranger.chat.completions.create(
                model=f"{model}:told", messages=[{"role": "user", "content": "hi"}]
            )
    for name in ("told", "odd"):
        removed = home.taas("adapter", "remove", f"{model}:{name}")
        assert removed.returncode == 0, removed.stderr
    with pytest.raises(openai.NotFoundError):
        said(f"{model}:told")
    assert said(model)[0] == base


def test_nothing_of_all_this_is_unaccounted_for(demo: dict[str, str]) -> None:
    report = audit(demo)
    assert report["residual_tokens"] == 0
    assert report["findings"] == []


TOO_LONG = "word " * 9000
POOLED: dict[str, tuple[str, dict[str, Any]]] = {
    "embeddings": ("/v1/embeddings", {"input": "the sea"}),
    "embeddings of ids in base64": ("/v1/embeddings", {"input": [[1, 2], [3]], "encoding_format": "base64"}),
    "dimensions": ("/v1/embeddings", {"input": "the sea", "dimensions": 8}),
    "no input": ("/v1/embeddings", {"input": []}),
    "empty input": ("/v1/embeddings", {"input": ["a", ""]}),
    "a text too long": ("/v1/embeddings", {"input": ["a", TOO_LONG]}),
    "ids too long": ("/v1/embeddings", {"input": [5] * 9000}),
    "out of vocabulary": ("/v1/embeddings", {"input": [999_999]}),
    "unknown model": ("/v1/embeddings", {"input": "a", "model": "zz"}),
    "scores": ("/v1/score", {"text_1": "a", "text_2": ["b", "c"]}),
    "scores of pairs": ("/v1/score", {"text_1": ["a", "b"], "text_2": ["b", "c"]}),
    "scores of no pairs": ("/v1/score", {"text_1": ["a", "b"], "text_2": ["b", "c", "d"]}),
    "nothing to score": ("/v1/score", {"text_1": "a", "text_2": []}),
    "ranking": ("/v1/rerank", {"query": "a", "documents": ["b", "c", "d"], "top_n": 2}),
    "tokenize": ("/tokenize", {"prompt": "hello world"}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    "abort": ("/inference/v1/abort_requests", {"request_ids": ["none"]}),
}


@pytest.fixture(scope="module")
def engines(home: Home) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """The engine that pools, and the simulated one in its place. It is asked directly, so the audit finds
    requests that no gateway knows: tests of the audit come before.
    """
    stores = read_env(home.folder / "services.env")
    with redis.Redis.from_url(stores["TAAS_REDIS_URL"]) as registry:
        entries = [json.loads(raw) for raw in registry.hvals(redis_keys.INSTANCES)]
    (entry,) = [each for each in entries if "embeddings" in each["routes"]]
    simulated = SimEngine("--pooling", "--context", "8192", model=entry["engine_model"])
    simulated.start()
    with (
        closing(simulated),
        plain_http.Client(
            base_url=entry["url"], timeout=60, headers={"authorization": f"Bearer {entry['key']}"}
        ) as real,
        plain_http.Client(
            base_url=simulated.url, headers={"authorization": f"Bearer {simulated.key}"}
        ) as ours,
    ):
        yield ours, real


@pytest.mark.parametrize("case", POOLED)
def test_a_simulated_engine_that_pools_answers_in_the_shape_and_words_of_vllms(
    engines: tuple[httpx.Client, httpx.Client], case: str
) -> None:
    path, body = POOLED[case]
    ours, theirs = (client.post(path, json={"model": DEFAULT_MODEL, **body}) for client in engines)
    assert answer_shape(ours) == answer_shape(theirs)
    if theirs.status_code != 200:
        assert ours.text == theirs.text


def test_down_leaves_nothing(home: Home) -> None:
    down = home.run("down")
    assert down.returncode == 0, down.stdout
    assert re.search(r"what is left +[0-9.]+ s +nothing", down.stdout), down.stdout
    keep_model(home.folder / "models" / DEFAULT_MODEL)
