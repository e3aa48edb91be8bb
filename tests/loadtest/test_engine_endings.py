"""However a request ends, the counters and the truth say what it cost."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from loadtest import plain_http
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.loadtest.test_engine_answers import events, usage_of

LONG: dict[str, Any] = {
    "model": "sim",
    "messages": [{"role": "user", "content": "tell me of the sea"}],
    "ignore_eos": True,
    "max_tokens": 1500,
}
CONTINUOUS = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
ROUTES = {
    "/v1/chat/completions": (LONG, "chatcmpl-{}"),
    "/v1/messages": (LONG, "chatcmpl-{}"),
    "/v1/completions": ({"prompt": "sea", "max_tokens": 1500, "ignore_eos": True}, "cmpl-{}-0"),
    "/v1/responses": ({"input": "sea", "max_output_tokens": 1500, "ignore_eos": True}, "{}_0"),
}


async def until(condition: Callable[[], Awaitable[bool] | bool], seconds: float = 5) -> None:
    """Wait for a condition, and fail when it does not come."""
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.005)


def client(engine: SimEngine) -> httpx.AsyncClient:
    return plain_http.AsyncClient(
        base_url=engine.url, headers={"authorization": f"Bearer {engine.key}"}, timeout=20
    )


def produced(engine: SimEngine, request_id: str) -> int:
    return int(engine.truth().get(request_id, {}).get("output", 0))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ROUTES)
async def test_abort_by_id_ends_the_answer_in_the_normal_way_with_exact_usage(
    make_engine: EngineMaker, path: str, stream: bool
) -> None:
    engine = make_engine("--decode-ms", "5")
    body, engine_id = ROUTES[path]
    more = CONTINUOUS if stream and path.endswith("completions") else {"stream": stream}
    body = body | more | ({"request_id": "resp_one"} if "responses" in path else {})
    request_id = "resp_one" if "responses" in path else "one"
    async with client(engine) as http:
        running = asyncio.create_task(http.post(path, json=body, headers={"x-request-id": "one"}))
        await until(lambda: produced(engine, request_id) >= 3)
        await http.post("/inference/v1/abort_requests", json={"request_ids": [engine_id.format(request_id)]})
        answer = await running
    truth = engine.truth()[request_id]
    assert (truth["finish"], 3 <= truth["output"] < 1500) == ("abort", True)
    counters = engine.counters()
    assert (truth["prompt"], truth["output"]) == (counters["prompt"], counters["generation"])
    found = [chunk.get("response", chunk) for chunk in events(answer.text)] if stream else [answer.json()]
    assert usage_of([chunk for chunk in found if chunk.get("usage")][-1]) == (
        truth["prompt"],
        truth["output"],
    )
    if path.endswith("completions"):
        finishes = [choice["finish_reason"] for chunk in found for choice in chunk["choices"]]
        assert finishes[-1] == "abort"


async def test_closing_the_connection_aborts(make_engine: EngineMaker) -> None:
    engine = make_engine("--decode-ms", "5")
    async with (
        client(engine) as http,
        http.stream(
            "POST", "/v1/chat/completions", json=LONG | CONTINUOUS, headers={"x-request-id": "gone"}
        ) as answer,
    ):
        await anext(answer.aiter_lines())
    await until(lambda: engine.truth()["gone"]["finish"] == "abort")
    assert engine.truth()["gone"]["output"] == engine.counters()["generation"]
    assert engine.counters()["running"] == 0


async def test_closing_the_connection_aborts_an_answer_that_is_not_streamed(make_engine: EngineMaker) -> None:
    engine = make_engine("--decode-ms", "5")
    async with client(engine) as http:
        running = asyncio.create_task(
            http.post("/v1/chat/completions", json=LONG, headers={"x-request-id": "gone"})
        )
        await until(lambda: produced(engine, "gone") >= 1)
        running.cancel()
    await until(lambda: engine.truth()["gone"]["finish"] == "abort")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_stopped_before_its_first_token_costs_no_prefill_though_usage_names_the_prompt(
    make_engine: EngineMaker, path: str
) -> None:
    engine = make_engine("--prefill-tokens-per-s", "20")
    async with client(engine) as http:
        running = asyncio.create_task(http.post(path, json=LONG, headers={"x-request-id": "early"}))
        await until(lambda: engine.counters()["running"] == 1)
        await http.post("/inference/v1/abort_requests", json={"request_ids": ["chatcmpl-early"]})
        answer = (await running).json()
    prompt, output = usage_of(answer)
    assert (prompt > 0, output) == (True, 0)
    assert (engine.counters()["prompt"], engine.counters()["generation"]) == (0, 0)
    assert engine.truth()["early"]["prompt"] == 0


async def test_aborting_one_prompt_of_a_list_leaves_the_others(make_engine: EngineMaker) -> None:
    engine = make_engine("--decode-ms", "3")
    async with client(engine) as http:
        body = {"prompt": ["a", "b"], "max_tokens": 60, "ignore_eos": True}
        running = asyncio.create_task(
            http.post("/v1/completions", json=body, headers={"x-request-id": "two"})
        )
        await until(lambda: produced(engine, "two") >= 4)
        await http.post(
            "/inference/v1/abort_requests", json={"request_ids": ["cmpl-two-0", "cmpl-unknown-0"]}
        )
        choices = (await running).json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["abort", "length"]


async def test_over_many_endings_the_counters_equal_the_sum_of_truths(make_engine: EngineMaker) -> None:
    engine = make_engine("--decode-ms", "1", "--slots", "16")

    async def one(http: httpx.AsyncClient, number: int) -> None:
        path = list(ROUTES)[number % 4]
        body = ROUTES[path][0] | (
            {"max_output_tokens": 40, "request_id": f"resp_{number}"}
            if path == "/v1/responses"
            else {"max_tokens": 40}
        )
        async with http.stream(
            "POST", path, json=body | {"stream": True}, headers={"x-request-id": f"r{number}"}
        ) as answer:
            lines = answer.aiter_lines()
            for _ in range(number % 30):
                if await anext(lines, None) is None:
                    break

    async with client(engine) as http:
        await asyncio.gather(*(one(http, number) for number in range(60)))
    await until(
        lambda: (
            all(truth["finish"] for truth in engine.truth().values()) and engine.counters()["running"] == 0
        )
    )
    truths = list(engine.truth().values())
    assert len(truths) == 60
    counters = engine.counters()
    for name, counter in (("prompt", "prompt"), ("cached", "cached"), ("output", "generation")):
        assert sum(truth[name] for truth in truths) == counters[counter]


async def test_sigterm_lets_streams_end_when_told_to(make_engine: EngineMaker) -> None:
    engine = make_engine("--decode-ms", "5", "--shutdown-timeout", "10")
    async with client(engine) as http:
        running = asyncio.create_task(
            http.post(
                "/v1/chat/completions", json=LONG | {"max_tokens": 60}, headers={"x-request-id": "last"}
            )
        )
        await until(lambda: produced(engine, "last") >= 1)
        await asyncio.to_thread(engine.terminate)
        assert (await running).json()["usage"]["completion_tokens"] == 60
