"""Nothing that a tenant sends or gets is stored, however its request ends: random words are sent in every
place that takes text, and then every place that stores is searched for them. On simulated engines;
`test_privacy` does the same on real vLLM.
"""

import json
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import psycopg
import pytest
import redis

from billing.cell.execute import execute
from billing.cell.scripts import grant_call
from billing.wire import redis_keys
from loadtest.engine.tokens import split, token_id
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import wait_until
from tests.fixtures.retained import (
    Blob,
    Needles,
    command_lines,
    elsewhere,
    files_in,
    keys_of_redis,
    own_temporary_files,
    rows_of_postgres,
)
from tests.fixtures.stack import PRICE, Stack, empty_stack

pytestmark = pytest.mark.together

MODEL: Final = "fine"
CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
)  # fmt: skip
GENERATING = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
DEADLINES: Final = {"TAAS_REQUEST_DEADLINE_S": "4", "TAAS_FIRST_TOKEN_DEADLINE_S": "2"}


@dataclass(kw_only=True)
class Scene:
    """The installation, with a private model on two engines, and what was sent so far. `core` is in every
    word that was sent.
    """

    stack: Stack
    engines: list[SimEngine]
    key: str
    core: str
    began: float
    needles: Needles = field(default_factory=Needles)

    def word(self, where: str) -> str:
        """One that names where it was sent."""
        return f"{self.core}-{where}"

    def body(self, path: str, said: str, **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"Repeat {said} now."}]
        prompt: dict[str, Any] = {
            CHAT: {"messages": messages, "max_tokens": 12},
            COMPLETIONS: {"prompt": f"Repeat {said} now.", "max_tokens": 12},
            RESPONSES: {"input": f"Repeat {said} now.", "max_output_tokens": 12},
            MESSAGES: {"messages": messages, "max_tokens": 12},
        }[path]
        return {"model": MODEL, **prompt, **fields}

    def ask(self, path: str, body: Any, **headers: str) -> httpx.Response:
        with self.stack.gateway.client(self.key, timeout_s=60) as client:
            return client.post(path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def ask_well(self, path: str, body: Any, **headers: str) -> None:
        answer = self.ask(path, body, **headers)
        assert answer.status_code == 200, answer.text
        self.needles.add("an answer", _text_of(answer)[:48])

    def begin(self, path: str, said: str, **fields: Any) -> ExitStack:
        """A stream that runs until it is left, or broken."""
        leaving = ExitStack()
        client = leaving.enter_context(self.stack.gateway.client(self.key, timeout_s=60))
        body = self.body(path, said, stream=True, ignore_eos=True, **fields)
        answer = leaving.enter_context(client.stream("POST", path, json=body | {"max_tokens": 2000}))
        assert answer.status_code == 200
        assert next(answer.iter_bytes())
        return leaving

    def await_engines(self) -> None:
        def serving() -> bool:
            with self.stack.gateway.client(self.key) as client:
                return client.post(COMPLETIONS, json=self.body(COMPLETIONS, "x")).status_code == 200

        wait_until(serving, "engines")

    # What stores

    def places(self) -> dict[str, Callable[[], Iterator[Blob]]]:
        return {
            "files of the installation": lambda: files_in(self.stack.home),
            "metrics": self._metrics,
            "Redis": self._redis,
            "PostgreSQL": lambda: rows_of_postgres(self.database_url, since=self.began),
            "command lines": lambda: command_lines(self._pids()),
            "folders of the machine": lambda: elsewhere(since=self.began),
        }

    @property
    def database_url(self) -> str:
        return self.stack.database_url.replace("postgresql+psycopg:", "postgresql:", 1)

    def _redis(self) -> Iterator[Blob]:
        with redis.Redis(port=self.stack.valkey.port) as client:
            # Its file of all data, beside the one of all commands; packed, it could not be searched.
            client.config_set("rdbcompression", "no")
            client.save()
            yield from keys_of_redis(client)
        yield from files_in(self.stack.valkey.folder)

    def _metrics(self) -> Iterator[Blob]:
        texts = self.stack.pages()
        for engine in self.engines:
            texts[f"metrics of {engine.url}"] = engine.metrics_page()
        for where, text in texts.items():
            yield where, text.encode()

    def _pids(self) -> list[int]:
        ours = [psutil.Process(process.pid) for process in self.stack.processes.values()]
        return [each.pid for process in ours for each in (process, *process.children(recursive=True))]


def _text_of(answer: httpx.Response) -> str:
    """What the model said, of any route, streamed or not."""
    found: list[str] = []

    def read(value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name in {"content", "text", "delta", "arguments", "partial_json"} and isinstance(
                    inner, str
                ):
                    found.append(inner)
                else:
                    read(inner)
        elif isinstance(value, list):
            for inner in value:
                read(inner)

    lines = answer.text.splitlines() if "event-stream" in answer.headers["content-type"] else []
    for text in [line[6:] for line in lines if line.startswith("data: {")] or [answer.text]:
        read(json.loads(text))
    said = "".join(found)
    assert len(said) > 20, answer.text
    return said


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, postgres_server: str) -> Iterator[Scene]:
    """All of it has been sent, and has come to rest."""
    began = time.time() - 1
    with ExitStack() as ending:
        home = tmp_path_factory.mktemp("retention")
        ending.enter_context(own_temporary_files(home / "tmp"))
        stack = empty_stack(home, postgres_server, ending)
        stack.start_billing()
        owner, key = stack.new_tenant(redis_down={"policy": "local_lease", "requests": 50, "units": 100_000})
        stack.cell = stack.admin("POST", "models", name=MODEL, context_tokens=4096, owner=owner)["cell"]
        stack.admin("POST", "prices", model=MODEL, **PRICE)
        engines = [SimEngine("--decode-ms", "5", model=MODEL) for _ in range(2)]
        for number, engine in enumerate(engines):
            ending.callback(engine.close)
            engine.start()
            stack.taas(
                "instance", "add", "--model", MODEL, "--url", engine.url, "--key", engine.key, "--instance",
                f"i{number}",
            )  # fmt: skip
        stack.gateway = stack.make_gateway(TAAS_LOG_LEVEL="debug", **DEADLINES)
        stack.gateway.start()
        core = f"zq{secrets.token_hex(8)}"
        made = Scene(stack=stack, engines=engines, key=key, core=core, began=began)
        made.needles.add("a word", made.core)
        made.needles.add_ids("a word", [token_id(piece) for piece in split(f" {made.core}")][:4])
        made.await_engines()
        for happen in EVENTS:
            happen(made)
            made.await_engines()
        wait_until(lambda: not stack.open_ids(), "end of open requests", timeout_s=30)
        wait_until(lambda: stack.redis.xlen(redis_keys.usage_stream(stack.cell)) == 0, "empty usage stream")
        yield made


# What happens


def whole_answers(scene: Scene) -> None:
    for path in GENERATING:
        for stream in (False, True):
            scene.ask_well(path, scene.body(path, scene.word("prompt"), stream=stream))
    ids = [secrets.randbelow(40_000) + 1_000 for _ in range(12)]
    scene.needles.add_ids("a prompt of ids", ids)
    scene.ask_well(COMPLETIONS, {"model": MODEL, "prompt": ids, "max_tokens": 12})
    said = scene.word("counted")
    for path, body in (
        ("/tokenize", {"prompt": said}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": said}]}),
        ("/v1/responses/input_tokens", {"input": said}),
    ):
        assert scene.ask(path, {"model": MODEL, **body}).status_code == 200


def long_prompts_and_sessions(scene: Scene) -> None:
    """They are known again by the routing, and by engines' caches."""
    said = " ".join([scene.word("long")] * 300)
    for _ in range(3):
        scene.ask_well(
            CHAT, scene.body(CHAT, said, prompt_cache_key=scene.word("cache-key")),
            x_session_id=scene.word("session"),
        )  # fmt: skip


def tools(scene: Scene) -> None:
    said = scene.word("tool-arguments")
    function = {"name": "f", "description": scene.word("tool"), "parameters": {"type": "object"}}
    offered = [{"type": "function", "function": function}]
    arguments = json.dumps({"text": said})
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Call f."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": scene.word("tool-result")},
    ]
    for stream in (False, True):
        for engine in scene.engines:
            engine.faults("tool_call", f"f:{arguments}")
        body = {"model": MODEL, "messages": messages, "tools": offered, "stream": stream, "max_tokens": 60}
        answer = scene.ask(CHAT, body)
        assert said in _text_of(answer), "the model's call has the word"
        for engine in scene.engines:
            engine.reset()


def names_that_callers_give(scene: Scene) -> None:
    for path in GENERATING:
        known = {"user_id": scene.word("user-id")} if path == MESSAGES else {"k": scene.word("metadata")}
        fields: dict[str, Any] = {"metadata": known, scene.word("field"): scene.word("value")}
        if path != MESSAGES:
            fields["user"] = scene.word("user")
        if path in {CHAT, RESPONSES}:
            fields["safety_identifier"] = scene.word("safety")
        scene.ask_well(
            path, scene.body(path, "it", **fields), user_agent=scene.word("agent"),
            x_session_id=scene.word("session"), traceparent=scene.word("trace"), cookie=scene.word("cookie"),
            x_request_id=scene.word("request-id"), idempotency_key=scene.word(f"idempotency-{path}"),
            openai_organization=scene.word("organization"), x_forwarded_for=scene.word("address"),
            **{scene.word("header"): scene.word("header-value")},
        )  # fmt: skip


def refusals(scene: Scene) -> None:
    """Of every layer: the listener, the checks, the limits, the engine."""
    said = scene.word("refused")
    good = scene.body(CHAT, said)
    bodies: list[dict[str, Any]] = [
        {"model": said}, {"temperature": said}, {"max_tokens": 10**9}, {"messages": [{"role": said}]},
        {"tool_choice": said}, {"logit_bias": {said: 1}}, {"service_tier": said}, {"chat_template": said},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": said}}]}]},
        {"messages": [{"role": "user", "content": f"{said} " * 5000}]},
    ]  # fmt: skip
    answers = [scene.ask(CHAT, good | change) for change in bodies]
    wanted = {"name": "n", "schema": {"type": "object", "required": [said]}}
    scene.ask(CHAT, good | {"response_format": {"type": "json_schema", "json_schema": wanted}})
    with scene.stack.gateway.client(scene.key) as client:
        answers += [
            client.post(CHAT, content=f'{{"model": "{said}'.encode()),
            client.post(CHAT, content=said.encode(), headers={"content-encoding": said}),
            client.post(f"/v1/{said}", json=good),
            client.post(f"{CHAT}?{said}={said}", content=b"{"),
            client.get(f"/v1/models/{said}"),
            client.get(f"/v1/usage/requests/{said}"),
            client.get("/v1/capacity", params={"contract": said, "from": said}),
            client.get("/v1/models", headers={"authorization": f"Bearer {said}"}),
            client.request(said, "/v1/models"),
        ]
    assert all(400 <= each.status_code < 500 for each in answers), [*map(str, answers)]
    for engine in scene.engines:
        engine.faults("status", 400)
        engine.faults("late_refusal", 1)
    for stream in (False, True):
        assert scene.ask(CHAT, scene.body(CHAT, scene.word("refused-by-engine"), stream=stream)).text
    for engine in scene.engines:
        engine.reset()


def limits(scene: Scene) -> None:
    tenant = scene.stack.sql("SELECT owner FROM model WHERE name = %s", MODEL)[0][0]
    limit = f"limits?tenant={tenant}&model={MODEL}"
    scene.stack.taas("limit", "set", "--tenant", tenant, "--units-per-minute", "1")
    said = scene.word("over-limit")
    wait_until(lambda: scene.ask(CHAT, scene.body(CHAT, said)).status_code == 429, f"refusal by {limit}")
    scene.stack.taas("limit", "set", "--tenant", tenant, "--units-per-minute", "none")


def broken_streams(scene: Scene) -> None:
    """Left by their callers, and broken by their engine in every way."""
    for path in (CHAT, COMPLETIONS):
        scene.begin(path, scene.word("left")).close()
    for fault, value in (
        ("die_after_tokens", "3:reset"), ("die_after_tokens", "0:close"), ("end_without_done", "3"),
        ("garbage", "html"), ("garbage", "truncated_json"), ("garbage", "binary"), ("garbage", "bad_chunk"),
        ("usage", "negative"), ("usage", "missing"), ("status", 500), ("status", 503),
    ):  # fmt: skip
        for path in GENERATING:
            for engine in scene.engines:
                engine.faults(fault, value)
            answer = scene.ask(path, scene.body(path, scene.word("broken"), stream=True))
            assert answer.status_code in {200, 400, 502, 503}, answer.text
            for engine in scene.engines:
                engine.reset()


def resumed(scene: Scene) -> None:
    """On another engine; and on one that dies too, so that it is quarantined."""
    scene.engines[0].faults("die_after_tokens", "8:reset")
    for _ in range(4):
        scene.ask_well(CHAT, scene.body(CHAT, scene.word("resumed"), stream=True))
    for engine in scene.engines:
        engine.reset()
        engine.faults("die_after_tokens", "4:reset")
    scene.ask(CHAT, scene.body(CHAT, scene.word("quarantined"), stream=True))
    wait_until(lambda: bool(scene.stack.redis.zcard(redis_keys.QUARANTINE)), "quarantine")
    for engine in scene.engines:
        engine.reset()


def preempted(scene: Scene) -> None:
    """A flex stream has to wait, and goes on."""
    room = redis_keys.room(scene.stack.cell)

    def give(most: int, preempt: int) -> None:
        fields = {f"{kind}:i{n}": most for kind in "mx" for n in range(2)}
        scene.stack.redis.hset(room, mapping=fields | {f"g:i{n}": preempt for n in range(2)})
        execute(scene.stack.redis, grant_call(scene.stack.cell))

    give(4, 0)
    body = scene.body(CHAT, scene.word("preempted"), stream=True, service_tier="flex", ignore_eos=True)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(scene.ask, CHAT, body | {"max_tokens": 300})
        wait_until(lambda: bool(scene.stack.open_ids()), "a flex stream")
        give(0, 1)
        waiting = redis_keys.waiting_tenants(scene.stack.cell, "f")
        wait_until(lambda: running.done() or bool(scene.stack.redis.zcard(waiting)), "a stream that waits")
        give(4, 0)
        answer = running.result()
    assert answer.status_code == 200
    scene.needles.add("a resumed answer", _text_of(answer)[-48:])
    scene.stack.redis.delete(room)


def too_late(scene: Scene) -> None:
    for engine in scene.engines:
        engine.faults("hang", "silent")
    assert scene.ask(CHAT, scene.body(CHAT, scene.word("first-token"))).status_code in {502, 504}
    for engine in scene.engines:
        engine.reset()
        engine.faults("slow_drip", 300)
    body = scene.body(CHAT, scene.word("deadline"), stream=True, ignore_eos=True) | {"max_tokens": 500}
    assert "deadline_exceeded" in scene.ask(CHAT, body).text
    for engine in scene.engines:
        engine.reset()


def killed_gateway(scene: Scene) -> None:
    with ExitStack() as streams:
        for path in (CHAT, COMPLETIONS):
            streams.push(scene.begin(path, scene.word("killed")))
        scene.stack.gateway.kill()
        with suppress(httpx.HTTPError):
            streams.close()
    scene.stack.gateway.start()


def without_redis(scene: Scene) -> None:
    """Streams end and others are admitted while Redis is away: the journal has them, and is searched."""
    with ExitStack() as streams:
        streams.push(scene.begin(CHAT, scene.word("without-redis")))
        scene.stack.valkey.kill()
    for stream in (False, True):
        scene.ask(CHAT, scene.body(CHAT, scene.word("local-lease"), stream=stream))
    journal = scene.stack.gateway.home / "journal"
    wait_until(lambda: any(each.stat().st_size for each in journal.iterdir()), "journal")
    assert scene.needles.hits(files_in(journal)) == []
    scene.stack.valkey.start()


EVENTS = (
    whole_answers, long_prompts_and_sessions, tools, names_that_callers_give, refusals, limits,
    broken_streams, resumed, preempted, too_late, killed_gateway, without_redis,
)  # fmt: skip


# What is left of it


PLACES = (
    "files of the installation", "metrics", "Redis", "PostgreSQL", "command lines", "folders of the machine",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_nothing_that_was_sent_or_answered_is_kept(scene: Scene, place: str) -> None:
    assert scene.needles.hits(scene.places()[place]()) == []


def test_a_gateway_that_crashes_writes_no_core(scene: Scene) -> None:
    process = scene.stack.gateway.process
    assert process is not None
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert re.search(r"^Max core file size +1 +1 ", limits, re.MULTILINE)


# That a word would be found, if it were there


@pytest.mark.parametrize(
    "place", ["files of the installation", "Redis", "PostgreSQL", "folders of the machine"]
)
def test_a_word_that_is_written_there_on_purpose_is_found(scene: Scene, place: str) -> None:
    word, needles = f"zq{secrets.token_hex(8)}", Needles()
    needles.add("it", word)
    look = scene.places()[place]
    assert needles.hits(look()) == []
    with ExitStack() as undo:
        if place == "files of the installation":
            log = scene.stack.gateway.home / "journal" / "1.journal"
            undo.callback(log.unlink)
            log.write_text(word)
        elif place == "Redis":
            undo.callback(scene.stack.redis.delete, "a", "b")
            scene.stack.redis.hset("a", "f", word)
            scene.stack.redis.xadd("b", {"f": word})
        elif place == "PostgreSQL":
            connection = undo.enter_context(psycopg.connect(scene.database_url, autocommit=True))
            connection.execute("CREATE TABLE kept (t text)")
            undo.callback(connection.execute, "DROP TABLE kept")
            connection.execute("INSERT INTO kept VALUES (%s)", [word])
        else:
            held = undo.enter_context(tempfile.NamedTemporaryFile())
            held.write(word.encode())
            held.flush()
        hits = needles.hits(look())
    assert hits, place
    if place == "Redis":
        assert {"Redis b'a'", "Redis b'b'"} <= {hit.partition(":")[0] for hit in hits}
        assert any(".aof" in hit for hit in hits)
    if place == "PostgreSQL":
        assert any("table" in hit for hit in hits)
        assert any("/data/" in hit for hit in hits)
