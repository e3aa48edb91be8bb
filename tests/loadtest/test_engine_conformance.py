"""The simulated engine answers in the same shapes as a real vLLM: keys, types and order of events of every
route.
"""

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from loadtest import plain_http
from serving.catalogue import known_models
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.stack import MODEL, Stack

pytestmark = pytest.mark.vllm

MESSAGES = [{"role": "user", "content": "tell me of the sea"}]
CONTEXT = known_models()[MODEL].context_tokens
LONG_TEXT = "word " * (CONTEXT + 1000)
OPTIONS = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
INCLUDE = {"stream": True, "stream_options": {"include_usage": True}}
CHAT = {"messages": MESSAGES, "max_tokens": 5, "ignore_eos": True, "temperature": 0}
TEXT = {"prompt": "the sea is", "max_tokens": 5, "ignore_eos": True, "temperature": 0}
RESPONSE = {"input": "tell me of the sea", "max_output_tokens": 5, "ignore_eos": True, "temperature": 0}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat n": ("/v1/chat/completions", CHAT | {"n": 2, "temperature": 1}),
    "chat logprobs": ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2}),
    "chat stream": ("/v1/chat/completions", CHAT | OPTIONS),
    "chat stream n": ("/v1/chat/completions", CHAT | OPTIONS | {"n": 2, "temperature": 1}),
    "chat stream, usage at the end": ("/v1/chat/completions", CHAT | INCLUDE),
    "chat stream, no usage": ("/v1/chat/completions", CHAT | {"stream": True}),
    "chat stream, continuous without include": (
        "/v1/chat/completions",
        CHAT | {"stream": True, "stream_options": {"continuous_usage_stats": True}},
    ),
    "chat stream logprobs": ("/v1/chat/completions", CHAT | INCLUDE | {"logprobs": True, "top_logprobs": 1}),
    "chat ended by itself": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400, "temperature": 0},
    ),
    "chat stream ended by itself": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 400,
            "temperature": 0,
            "stream": True,
        },
    ),
    "completions": ("/v1/completions", TEXT),
    "completions list": ("/v1/completions", TEXT | {"prompt": ["a", "the sea"], "n": 2, "temperature": 1}),
    "completions token ids": ("/v1/completions", TEXT | {"prompt": [1, 2, 3]}),
    "completions echo": ("/v1/completions", TEXT | {"echo": True}),
    "completions echo only": ("/v1/completions", TEXT | {"echo": True, "max_tokens": 0}),
    "completions logprobs": ("/v1/completions", TEXT | {"logprobs": 1}),
    "completions stream": ("/v1/completions", TEXT | OPTIONS),
    "completions stream list": ("/v1/completions", TEXT | OPTIONS | {"prompt": ["a", "the sea"]}),
    "completions stream, no usage": ("/v1/completions", TEXT | {"stream": True}),
    "completions stream echo": ("/v1/completions", TEXT | {"stream": True, "echo": True}),
    "completions stream logprobs": ("/v1/completions", TEXT | {"stream": True, "logprobs": 1}),
    "responses": ("/v1/responses", RESPONSE),
    "responses ended by itself": (
        "/v1/responses",
        {"input": "hi", "max_output_tokens": 400, "temperature": 0},
    ),
    "responses stream": ("/v1/responses", RESPONSE | {"stream": True}),
    "responses items": (
        "/v1/responses",
        RESPONSE
        | {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
            "instructions": "be brief",
        },
    ),
    "messages": ("/v1/messages", CHAT),
    "messages blocks": (
        "/v1/messages",
        CHAT
        | {"system": "be brief", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    ),
    "messages stream": ("/v1/messages", CHAT | {"stream": True}),
    "messages ended by itself": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400, "temperature": 0},
    ),
    "messages stream ended by itself": (
        "/v1/messages",
        {
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 400,
            "temperature": 0,
            "stream": True,
        },
    ),
    "count tokens": ("/v1/messages/count_tokens", {"messages": MESSAGES}),
    "tokenize": ("/tokenize", {"prompt": "hello world"}),
    "tokenize chat": ("/tokenize", {"messages": MESSAGES, "return_token_strs": True}),
    "detokenize": ("/detokenize", {"tokens": [100, 200]}),
    "abort nothing": ("/inference/v1/abort_requests", {"request_ids": ["none"]}),
    "abort without ids": ("/inference/v1/abort_requests", {}),
    "embeddings": ("/v1/embeddings", {"input": "a"}),
    "unknown model": ("/v1/chat/completions", CHAT | {"model": "zz"}),
    "unknown model, messages": ("/v1/messages", CHAT | {"model": "zz"}),
    "unknown model, responses": ("/v1/responses", RESPONSE | {"model": "zz"}),
    "bad n": ("/v1/chat/completions", CHAT | {"n": "3x"}),
    "no messages": ("/v1/chat/completions", {"max_tokens": 1}),
    "empty messages": ("/v1/chat/completions", {"messages": [], "max_tokens": 1}),
    "too many tokens": ("/v1/chat/completions", CHAT | {"max_tokens": 99999}),
    "max_tokens 0": ("/v1/chat/completions", CHAT | {"max_tokens": 0}),
    "min over max": ("/v1/chat/completions", CHAT | {"min_tokens": 9}),
    "prompt too long": (
        "/v1/chat/completions",
        CHAT | {"messages": [{"role": "user", "content": LONG_TEXT}]},
    ),
    "prompt too long, messages": (
        "/v1/messages",
        CHAT | {"messages": [{"role": "user", "content": LONG_TEXT}]},
    ),
    "prompt too long, responses": ("/v1/responses", RESPONSE | {"input": LONG_TEXT}),
    "messages without max_tokens": ("/v1/messages", {"messages": MESSAGES}),
    "messages negative max_tokens": ("/v1/messages", {"messages": MESSAGES, "max_tokens": -4}),
    "thinking, messages": (
        "/v1/messages",
        CHAT | {"max_tokens": 1100, "thinking": {"type": "enabled", "budget_tokens": 1024}},
    ),
    "thinking, messages stream": (
        "/v1/messages",
        CHAT | {"max_tokens": 1100, "stream": True, "thinking": {"type": "enabled", "budget_tokens": 1024}},
    ),
    "thinking, chat": ("/v1/chat/completions", CHAT | {"thinking_token_budget": 5}),
    "thinking, chat stream": ("/v1/chat/completions", CHAT | {"thinking_token_budget": 5, "stream": True}),
    "more tokens than the prompt leaves": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": CONTEXT, "temperature": 0},
    ),
    "stream options without stream": (
        "/v1/chat/completions",
        CHAT | {"stream_options": {"include_usage": True}},
    ),
    "token out of vocabulary": ("/v1/completions", TEXT | {"prompt": [999_999]}),
    "no prompt": ("/v1/completions", {"max_tokens": 1}),
    "images": (
        "/v1/chat/completions",
        CHAT
        | {
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
        },
    ),
}

# Samples of one request run side by side in a real engine: which of them is a step ahead is not fixed, so
# only what occurs is compared.
UNORDERED = ("chat stream n", "completions stream list")


@pytest.fixture(scope="module")
def real(stack: Stack) -> Iterator[httpx.Client]:
    """A client of the real vLLM that the worker of this run has started. It asks the engine directly, so the
    audit finds requests that no gateway knows: tests of the audit must come before these.
    """
    entry = stack.await_engine()
    with plain_http.Client(
        base_url=entry["url"], timeout=120, headers={"authorization": f"Bearer {entry['key']}"}
    ) as client:
        yield client


@pytest.fixture(scope="module")
def simulated() -> Iterator[httpx.Client]:
    """A client of a simulated engine with the context of the real one."""
    engine = SimEngine("--decode-ms", "1", "--context", str(CONTEXT))
    engine.start()
    headers = {"authorization": f"Bearer {engine.key}"}
    with closing(engine), plain_http.Client(base_url=engine.url, headers=headers) as client:
        yield client


def model_of(client: httpx.Client) -> str:
    name: str = client.get("/v1/models").json()["data"][0]["id"]
    return name


def shape(value: Any) -> Any:
    """Types in place of values; a list is the shapes that occur in it."""
    if isinstance(value, dict):
        if value and all(isinstance(inner, float) for inner in value.values()):
            return "floats by token"
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        seen: list[Any] = []
        for inner in value:
            if (found := shape(inner)) not in seen:
                seen.append(found)
        return seen
    return type(value).__name__


def stream_shape(text: str) -> list[Any]:
    """Event names and shapes in their order; what repeats, as tokens do, once."""
    found: list[Any] = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        content = lines["data"] if lines["data"] == "[DONE]" else shape(json.loads(lines["data"]))
        if not found or found[-1] != [lines.get("event"), content]:
            found.append([lines.get("event"), content])
    return found


def answer_shape(answer: httpx.Response) -> tuple[int, str, Any]:
    kind = answer.headers.get("content-type", "")
    if kind.startswith("text/event-stream"):
        return answer.status_code, kind, stream_shape(answer.text)
    return answer.status_code, kind, shape(answer.json()) if answer.content else None


def ask(client: httpx.Client, model: str, case: str) -> httpx.Response:
    """Send one case, with the server's model where the case names none."""
    path, body = CASES[case]
    return client.post(path, json={"model": model} | body)


@pytest.mark.parametrize("case", CASES)
def test_post_answers_have_the_shape_of_vllms(simulated: httpx.Client, real: httpx.Client, case: str) -> None:
    ours, theirs = (answer_shape(ask(client, model_of(client), case)) for client in (simulated, real))
    if case in UNORDERED:
        ours, theirs = (
            (status, kind, sorted(set(map(repr, events)))) for status, kind, events in (ours, theirs)
        )
    assert ours == theirs


ABORTS = {
    "chat": ("/v1/chat/completions", CHAT | {"max_tokens": 1000}, "chatcmpl-{}"),
    "messages": ("/v1/messages", CHAT | {"max_tokens": 1000}, "chatcmpl-{}"),
    "completions": ("/v1/completions", TEXT | {"max_tokens": 1000}, "cmpl-{}-0"),
    "responses": ("/v1/responses", RESPONSE | {"max_output_tokens": 1000}, "{}_0"),
}


@pytest.mark.parametrize("route", ABORTS)
async def test_an_abort_ends_a_stream_in_the_shape_of_vllms(
    make_engine: EngineMaker, real: httpx.Client, route: str
) -> None:
    path, body, engine_id = ABORTS[route]
    slow = make_engine("--decode-ms", "5")
    with plain_http.Client(base_url=slow.url, headers={"authorization": f"Bearer {slow.key}"}) as simulated:
        shapes = []
        for client in (simulated, real):
            request_id = f"resp_{uuid.uuid4().hex}"
            text = (
                {"model": model_of(client), "request_id": request_id, "stream": True}
                | (INCLUDE if "completions" in path else {})
                | body
            )
            seen = ""
            with client.stream("POST", path, json=text, headers={"x-request-id": request_id}) as answer:
                for line in answer.iter_lines():
                    seen += line + "\n"
                    if line.startswith("data: ") and seen.count("data: ") == 8:
                        client.post(
                            "/inference/v1/abort_requests",
                            json={"request_ids": [engine_id.format(request_id)]},
                        )
            shapes.append(stream_shape(seen))
    assert shapes[0] == shapes[1]


ERROR_CASES = [
    case
    for case in CASES
    if case.split()[0]
    in (
        "unknown",
        "bad",
        "no",
        "empty",
        "too",
        "max_tokens",
        "min",
        "prompt",
        "token",
        "stream",
        "images",
        "thinking,",
    )
]


@pytest.mark.parametrize("case", ERROR_CASES)
def test_refusals_have_vllms_words(simulated: httpx.Client, real: httpx.Client, case: str) -> None:
    ours, theirs = (
        ask(client, model_of(client), case).text.replace(model_of(client), "M")
        for client in (simulated, real)
    )
    assert ours == theirs


def test_metrics_have_vllms_names_and_labels(simulated: httpx.Client, real: httpx.Client) -> None:
    def series(text: str) -> set[tuple[str, tuple[str, ...]]]:
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return {
            (line.split("{")[0].split(" ")[0], tuple(sorted(re.findall(r'(\w+)="', line)))) for line in lines
        }

    ours = {entry for entry in series(simulated.get("/metrics").text) if entry[0] != "vllm:cache_config_info"}
    assert ours <= series(real.get("/metrics").text)


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/version", "/load"])
def test_get_answers_have_the_shape_of_vllms(simulated: httpx.Client, real: httpx.Client, path: str) -> None:
    assert answer_shape(simulated.get(path)) == answer_shape(real.get(path))
