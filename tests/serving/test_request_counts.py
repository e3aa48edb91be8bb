"""The middleware that vLLM is run with, around a small ASGI application that keeps its requests as vLLM
does.
"""

import asyncio
import importlib.util
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter

from serving.vllm_command import REQUEST_COUNTS, REQUEST_COUNTS_FOLDER

PROMPT = Counter("vllm:prompt_tokens", "As vLLM names it.")
GENERATION = Counter("vllm:generation_tokens", "As vLLM names it.")
KEY = "sk-engine"


def _module() -> ModuleType:
    """Loaded as vLLM does: from a folder of its own, by name."""
    name, _, _ = REQUEST_COUNTS.partition(".")
    spec = importlib.util.spec_from_file_location(name, REQUEST_COUNTS_FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(kw_only=True)
class State:
    """The part of vLLM's RequestState that is read."""

    external_req_id: str
    prompt_len: int
    parent_req: Any = None
    is_prefilling: bool = True
    num_cached_tokens: int = 0
    stats: Any = field(default_factory=lambda: SimpleNamespace(num_generation_tokens=0))

    def token(self) -> None:
        """One more token, counted as vLLM counts it."""
        if self.is_prefilling:
            self.is_prefilling = False
            PROMPT.inc(self.prompt_len)
        self.stats.num_generation_tokens += 1
        GENERATION.inc()


class Engine:
    """Answers `POST /v1/work` when it is told to; the request is in the engine meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_API_KEY", KEY)
        self.processor = SimpleNamespace(request_states={})
        self.app = SimpleNamespace(
            state=SimpleNamespace(engine_client=SimpleNamespace(output_processor=self.processor))
        )
        self.work: Callable[[], Awaitable[None]] | None = None
        self.served: list[str] = []
        self.middleware = _module().RequestCounts(self._serve)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        self.served.append(scope["path"])
        if scope["path"] == "/v1/work" and self.work is not None:
            await self.work()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def ask(
        self, method: str, path: str, body: Any = None, *, key: str = KEY, query: str = "", **headers: str
    ) -> tuple[int, Any]:
        """One request through the middleware: status and JSON."""
        sent: list[Any] = []
        pairs = [(b"authorization", f"Bearer {key}".encode())]
        pairs += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": pairs,
            "app": self.app,
        }  # fmt: skip

        async def receive() -> Any:
            return {"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.middleware(scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])

    async def page(self, after: int = 0) -> Any:
        """`GET /taas/request_counts`."""
        status, page = await self.ask("GET", "/taas/request_counts", query=f"after={after}")
        assert status == 200, page
        return page

    async def states(self, *ids: str, close: bool = False) -> Any:
        """`POST /taas/request_counts`."""
        _, answer = await self.ask("POST", "/taas/request_counts", {"ids": ids, "close": close})
        return answer["requests"]


@pytest.fixture
async def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine(monkeypatch)
    await made.ask("GET", "/health")
    return made


async def test_a_request_counts_from_its_first_token_on_and_is_remembered_after_its_end(
    engine: Engine,
) -> None:
    before = (await engine.page())["counted"]
    at_work, may_end = asyncio.Event(), asyncio.Event()
    state = State(external_req_id="chatcmpl-req_1", prompt_len=7, num_cached_tokens=2)

    async def work() -> None:
        engine.processor.request_states["inner-1"] = state
        at_work.set()
        await may_end.wait()
        engine.processor.request_states.pop("inner-1")

    engine.work = work
    asking = asyncio.create_task(engine.ask("POST", "/v1/work", {}, x_request_id="req_1"))
    await at_work.wait()
    assert (await engine.page())["running"] == {"req_1": [0, 0, 0]}
    state.token()
    state.token()
    page = await engine.page()
    assert page["running"] == {"req_1": [7, 2, 2]}
    assert page["counted"] == {"prompt": before["prompt"] + 7, "generation": before["generation"] + 2}
    may_end.set()
    await asking
    after = await engine.page()
    assert (after["running"], after["finished"]) == ({}, {"req_1": [7, 2, 2]})
    assert (await engine.page(after["sequence"]))["finished"] == {}
    assert await engine.states("req_1", "req_2") == {
        "req_1": ["finished", 7, 2, 2],
        "req_2": ["unknown", 0, 0, 0],
    }


async def test_samples_of_one_request_and_a_request_sent_again_add_up(engine: Engine) -> None:
    parent = SimpleNamespace(external_req_id="chatcmpl-req_n")
    states = engine.processor.request_states

    async def work() -> None:
        for index in range(3):
            states[f"{index}_inner"] = State(external_req_id="ignored", prompt_len=5, parent_req=parent)
        for state in list(states.values())[:2]:
            state.token()
        del states["0_inner"]

    engine.work = work
    await engine.ask("POST", "/v1/work", {}, x_request_id="req_n")
    assert (await engine.page())["running"] == {"req_n": [10, 0, 2]}
    states.pop("1_inner")
    states.pop("2_inner")
    assert (await engine.page())["finished"] == {"req_n": [10, 0, 2]}
    await engine.ask("POST", "/v1/work", {}, x_request_id="req_n")
    assert (await engine.page())["running"] == {"req_n": [20, 0, 4]}


async def test_a_request_that_has_not_reached_the_engine_is_pending_and_a_closed_one_never_reaches_it(
    engine: Engine,
) -> None:
    arrived, may_go_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        arrived.set()
        await may_go_on.wait()

    engine.work = work
    asking = asyncio.create_task(engine.ask("POST", "/v1/work", {}, x_request_id="req_slow"))
    await arrived.wait()
    assert await engine.states("req_slow", "req_never", close=True) == {
        "req_slow": ["pending", 0, 0, 0],
        "req_never": ["unknown", 0, 0, 0],
    }
    may_go_on.set()
    await asking
    assert await engine.states("req_slow") == {"req_slow": ["unknown", 0, 0, 0]}
    engine.served.clear()
    status, _ = await engine.ask("POST", "/v1/work", {}, x_request_id="req_never")
    assert (status, engine.served) == (410, [])


async def test_only_who_has_the_engines_key_learns_anything(engine: Engine) -> None:
    for method in ("GET", "POST"):
        assert (await engine.ask(method, "/taas/request_counts", {"ids": []}, key="sk-other"))[0] == 401


@pytest.mark.parametrize(
    "body", [[], {}, {"ids": "req_1"}, {"ids": [1]}, {"ids": [""]}, {"ids": [], "close": 1}]
)
async def test_a_question_that_is_none_is_refused(engine: Engine, body: Any) -> None:
    assert (await engine.ask("POST", "/taas/request_counts", body))[0] == 400


@pytest.mark.parametrize("processor", [None, SimpleNamespace(), SimpleNamespace(request_states=[])])
async def test_an_engine_of_another_build_has_no_counts_and_serves_all_the_same(
    monkeypatch: pytest.MonkeyPatch, processor: Any
) -> None:
    engine = Engine(monkeypatch)
    engine.app.state.engine_client.output_processor = processor
    assert (await engine.ask("POST", "/v1/work", {}, x_request_id="req_1"))[0] == 200
    assert (await engine.ask("GET", "/taas/request_counts"))[0] == 404


async def test_several_servers_before_one_engine_do_not_pretend_to_know_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/somewhere")
    engine = Engine(monkeypatch)
    assert (await engine.ask("GET", "/taas/request_counts"))[0] == 404


def test_the_counters_are_those_of_the_metrics_page() -> None:
    assert REGISTRY.get_sample_value("vllm:prompt_tokens_total") is not None
