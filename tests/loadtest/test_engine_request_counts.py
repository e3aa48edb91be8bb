"""The simulated engine tells what each request has produced, as the middleware in vLLM does."""

import threading
from typing import Any

import httpx
import pytest

from loadtest import plain_http
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import wait_until

CHAT = {"model": "sim", "messages": [{"role": "user", "content": "tell me of the sea"}], "ignore_eos": True}
PATH = "/taas/request_counts"


def page(engine: SimEngine, after: int = 0) -> dict[str, Any]:
    """The whole page."""
    answer = plain_http.get(
        f"{engine.url}{PATH}?after={after}",
        headers={"authorization": f"Bearer {engine.key}"},
    )
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def states(engine: SimEngine, *ids: str, close: bool = False) -> dict[str, Any]:
    """What is said of some ids."""
    found: dict[str, Any] = engine.post(PATH, {"ids": ids, "close": close}).json()["requests"]
    return found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {"max_tokens": 6}),
        ("/v1/chat/completions", CHAT | {"max_tokens": 6, "n": 3}),
        (
            "/v1/completions",
            {"model": "sim", "prompt": ["the sea", "a ship is"], "max_tokens": 4, "ignore_eos": True},
        ),
        (
            "/v1/responses",
            {"model": "sim", "input": "the sea", "max_output_tokens": 4, "request_id": "resp_x"},
        ),
        ("/v1/messages", CHAT | {"max_tokens": 6}),
    ],
)
def test_a_finished_request_counts_what_the_counters_moved_by(
    make_engine: EngineMaker, path: str, body: Any
) -> None:
    engine = make_engine("--decode-ms", "1")
    assert engine.post(path, body, x_request_id="req_1").status_code == 200
    found, counters = page(engine), engine.counters()
    prompt, _, output = found["finished"]["req_1"]
    assert (prompt, output) == (counters["prompt"], counters["generation"])
    assert found["counted"] == {"prompt": prompt, "generation": output}
    assert page(engine, found["sequence"])["finished"] == {}


def test_a_request_that_runs_counts_and_goes_on_counting_until_its_caller_has_left(
    make_engine: EngineMaker,
) -> None:
    engine = make_engine("--decode-ms", "5")
    headers = {"authorization": f"Bearer {engine.key}", "x-request-id": "req_1"}
    with httpx.stream(
        "POST", f"{engine.url}/v1/chat/completions", json=CHAT | {"max_tokens": 1000, "stream": True},
        headers=headers, trust_env=False,
    ) as answer:  # fmt: skip
        pieces = answer.iter_raw()
        next(pieces)
        wait_until(
            lambda: page(engine)["running"].get("req_1", [0, 0, 0])[2] > 2, "tokens of a running request"
        )
        state, *count = states(engine, "req_1")["req_1"]
        assert state == "running"
        assert count[2] > 2
    wait_until(lambda: states(engine, "req_1")["req_1"][0] == "finished", "end of the request")
    found, counters = page(engine), engine.counters()
    assert found["finished"]["req_1"][2] == found["counted"]["generation"] == counters["generation"]


def test_a_request_that_the_engine_refuses_late_has_counted(make_engine: EngineMaker) -> None:
    engine = make_engine("--decode-ms", "1")
    engine.faults("late_refusal")
    answer = engine.post("/v1/messages", CHAT | {"max_tokens": 6}, x_request_id="req_late")
    assert answer.status_code == 400
    assert states(engine, "req_late")["req_late"][3] == 6


def test_a_closed_request_is_refused_and_one_that_hangs_is_pending(make_engine: EngineMaker) -> None:
    engine = make_engine()
    engine.faults("hang")
    client = plain_http.Client(base_url=engine.url, headers={"authorization": f"Bearer {engine.key}"})

    def hang() -> None:
        with pytest.raises(httpx.TransportError):
            client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "req_h"}, timeout=2)

    thread = threading.Thread(target=hang)
    thread.start()
    wait_until(lambda: states(engine, "req_h")["req_h"][0] == "pending", "a request that hangs")
    assert states(engine, "req_n", close=True) == {"req_n": ["unknown", 0, 0, 0]}
    assert engine.post("/v1/chat/completions", CHAT, x_request_id="req_n").status_code == 410
    thread.join()
    wait_until(lambda: states(engine, "req_h")["req_h"][0] == "unknown", "its connection's end")


def test_an_engine_may_be_started_without_it(make_engine: EngineMaker) -> None:
    engine = make_engine("--no-request-counts")
    assert engine.post(PATH, {"ids": []}).status_code == 404
