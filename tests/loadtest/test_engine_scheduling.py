"""Slots, priorities, room and speed behave as a real engine's do, as far as load tests rely on it."""

import asyncio

from loadtest.engine.prefix_cache import PrefixCache
from loadtest.engine.tokens import WORDS, split
from tests.fixtures.engine import EngineMaker
from tests.loadtest.test_engine_endings import LONG, client, produced, until


async def test_no_more_run_than_there_are_slots_and_the_rest_waits(make_engine: EngineMaker) -> None:
    engine = make_engine("--slots", "2", "--decode-ms", "5")
    async with client(engine) as http:
        tasks = [
            asyncio.create_task(http.post("/v1/chat/completions", json=LONG | {"max_tokens": 30}))
            for _ in range(5)
        ]
        await until(lambda: (engine.counters()["running"], engine.counters()["waiting"]) == (2, 3))
        answers = await asyncio.gather(*tasks)
    assert {answer.json()["usage"]["completion_tokens"] for answer in answers} == {30}
    assert (engine.counters()["running"], engine.counters()["waiting"]) == (0, 0)


async def test_lower_priority_numbers_start_first_whenever_they_came(make_engine: EngineMaker) -> None:
    engine = make_engine("--slots", "1", "--decode-ms", "5")
    ended: list[int] = []

    async with client(engine) as http:

        async def ask(priority: int) -> None:
            await http.post("/v1/chat/completions", json=LONG | {"max_tokens": 5, "priority": priority})
            ended.append(priority)

        first = asyncio.create_task(http.post("/v1/chat/completions", json=LONG | {"max_tokens": 60}))
        await until(lambda: engine.counters()["running"] == 1)
        later = []
        for waiting, priority in enumerate((5, 1, 3), start=1):
            later.append(asyncio.create_task(ask(priority)))
            await until(lambda waiting=waiting: engine.counters()["waiting"] == waiting)  # type: ignore[misc]
        await asyncio.gather(first, *later)
    assert ended == [1, 3, 5]


async def test_when_room_runs_out_the_last_in_line_is_preempted_and_still_ends_exactly(
    make_engine: EngineMaker,
) -> None:
    engine = make_engine("--context", "512", "--kv-tokens", "600", "--decode-ms", "1")
    async with client(engine) as http:
        body = LONG | {"max_tokens": 250}
        answers = await asyncio.gather(
            *(
                http.post("/v1/chat/completions", json=body, headers={"x-request-id": f"p{number}"})
                for number in range(3)
            )
        )
    assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [250] * 3
    counters = engine.counters()
    assert counters["preemptions"] > 0
    assert counters["generation"] == 750
    assert counters["prompt"] == sum(answer.json()["usage"]["prompt_tokens"] for answer in answers)


async def test_prefill_takes_its_time_on_tokens_that_are_not_cached(make_engine: EngineMaker) -> None:
    engine = make_engine("--prefill-tokens-per-s", "1000", "--decode-ms", "0")
    body = LONG | {"messages": [{"role": "user", "content": "the quick brown fox " * 20}], "max_tokens": 1}
    loop = asyncio.get_running_loop()
    async with client(engine) as http:
        await http.get("/health")
        took = []
        for _ in range(2):
            began = loop.time()
            await http.post("/v1/chat/completions", json=body)
            took.append(loop.time() - began)
    assert took[0] > 0.08
    assert took[1] < took[0] / 2


async def test_a_waiting_request_can_be_aborted(make_engine: EngineMaker) -> None:
    engine = make_engine("--slots", "1", "--decode-ms", "5")
    async with client(engine) as http:
        first = asyncio.create_task(
            http.post("/v1/chat/completions", json=LONG, headers={"x-request-id": "runs"})
        )
        await until(lambda: produced(engine, "runs") > 0)
        second = asyncio.create_task(
            http.post("/v1/chat/completions", json=LONG, headers={"x-request-id": "waits"})
        )
        await until(lambda: engine.counters()["waiting"] == 1)
        await http.post("/inference/v1/abort_requests", json={"request_ids": ["chatcmpl-waits"]})
        assert (await second).json()["choices"][0]["finish_reason"] == "abort"
        assert engine.truth()["waits"] | {"prompt": 0, "output": 0} == engine.truth()["waits"]
        await http.post("/inference/v1/abort_requests", json={"request_ids": ["chatcmpl-runs"]})
        await first


def test_every_word_is_one_token_wherever_it_stands() -> None:
    text = "".join(WORDS)
    assert split(text) == list(WORDS)
    assert len(set(WORDS)) == 64


def test_cache_finds_only_unbroken_blocks_from_the_start_and_never_the_last_token() -> None:
    cache = PrefixCache(4, 100)
    assert cache.match_and_insert("s", list("abcdefgh")) == (0, 8)
    assert cache.match_and_insert("s", list("abcdefgh")) == (4, 0)
    assert cache.match_and_insert("s", list("abcdefghi")) == (8, 0)
    assert cache.match_and_insert("s", list("xbcdefgh")) == (0, 8)
    assert cache.match_and_insert("other", list("abcdefghi")) == (0, 8)


def test_cache_forgets_the_oldest_when_full() -> None:
    cache = PrefixCache(1, 3)
    cache.match_and_insert("s", list("abcd"))
    assert cache.match_and_insert("s", list("abcd"))[0] == 0
