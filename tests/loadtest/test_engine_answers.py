"""Every route answers in vLLM's form, with exact usage."""

import json
from typing import Any

import pytest

from tests.fixtures.engine import SimEngine

CHAT = {"model": "sim", "messages": [{"role": "user", "content": "tell me of the sea"}], "ignore_eos": True}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT | {"max_tokens": 7},
    "/v1/completions": {"prompt": "tell me of the sea", "max_tokens": 7, "ignore_eos": True},
    "/v1/responses": {"input": "tell me of the sea", "max_output_tokens": 7, "ignore_eos": True},
    "/v1/messages": CHAT | {"max_tokens": 7},
}


def events(text: str) -> list[Any]:
    """The `data:` of a stream, parsed, without [DONE]."""
    found = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(data) for data in found if data != "[DONE]"]


def usage_of(answer: dict[str, Any]) -> tuple[int, int]:
    """(prompt, output) of any route's usage."""
    usage = answer["usage"]
    if "prompt_tokens" in usage:
        return usage["prompt_tokens"], usage["completion_tokens"]
    prompt = (
        usage["input_tokens"]
        + usage.get("cache_read_input_tokens", 0)
        + usage.get("cache_creation_input_tokens", 0)
    )
    return prompt, usage["output_tokens"]


@pytest.mark.parametrize("path", BODIES)
def test_usage_equals_the_counters(engine: SimEngine, path: str) -> None:
    before = engine.counters()
    answer = engine.post(path, BODIES[path]).raise_for_status().json()
    after = engine.counters()
    assert usage_of(answer) == (
        after["prompt"] - before["prompt"],
        after["generation"] - before["generation"],
    )
    assert usage_of(answer)[1] == 7


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_tells_the_same_usage_and_text_as_a_whole_answer(engine: SimEngine, path: str) -> None:
    whole = engine.post(path, BODIES[path]).raise_for_status().json()
    engine.reset()
    options = {"stream_options": {"include_usage": True}} if path.endswith("completions") else {}
    streamed = engine.post(path, BODIES[path] | {"stream": True} | options).raise_for_status()
    chunks = events(streamed.text)
    match path:
        case "/v1/chat/completions":
            text = "".join(
                choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]
            )
            assert (text, usage_of(chunks[-1])) == (
                whole["choices"][0]["message"]["content"],
                usage_of(whole),
            )
            assert streamed.text.endswith("data: [DONE]\n\n")
        case "/v1/completions":
            text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
            assert (text, usage_of(chunks[-1])) == (whole["choices"][0]["text"], usage_of(whole))
        case "/v1/responses":
            text = "".join(
                chunk["delta"] for chunk in chunks if chunk["type"] == "response.output_text.delta"
            )
            assert (text, usage_of(chunks[-1]["response"])) == (
                whole["output"][0]["content"][0]["text"],
                usage_of(whole),
            )
            assert [chunk["sequence_number"] for chunk in chunks] == list(range(len(chunks)))
        case _:
            text = "".join(
                chunk["delta"]["text"] for chunk in chunks if chunk["type"] == "content_block_delta"
            )
            assert (text, usage_of(chunks[-2])) == (whole["content"][0]["text"], usage_of(whole))
            assert chunks[-1] == {"type": "message_stop"}


def test_continuous_usage_counts_every_token_of_each_sample(engine: SimEngine) -> None:
    body = CHAT | {
        "max_tokens": 5,
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    chunks = events(engine.post("/v1/chat/completions", body).text)
    for index in range(2):
        counts = [
            chunk["usage"]["completion_tokens"]
            for chunk in chunks
            if chunk["choices"] and chunk["choices"][0]["index"] == index
        ]
        assert counts == [0, 1, 2, 3, 4, 5]
    assert chunks[-1]["usage"]["completion_tokens"] == 10


def test_usage_is_on_no_chunk_that_was_not_asked_for_it(engine: SimEngine) -> None:
    plain = events(engine.post("/v1/chat/completions", CHAT | {"max_tokens": 3, "stream": True}).text)
    assert not any("usage" in chunk for chunk in plain)
    body = CHAT | {"max_tokens": 3, "stream": True, "stream_options": {"continuous_usage_stats": True}}
    assert not any("usage" in chunk for chunk in events(engine.post("/v1/chat/completions", body).text))


def test_n_counts_the_prompt_once_in_usage_and_n_times_in_the_counters(engine: SimEngine) -> None:
    before = engine.counters()
    answer = engine.post(
        "/v1/chat/completions", CHAT | {"max_tokens": 4, "n": 3}, x_request_id="threefold"
    ).json()
    after = engine.counters()
    prompt, output = usage_of(answer)
    assert output == 12
    assert after["prompt"] - before["prompt"] == 3 * prompt == engine.truth()["threefold"]["prompt"]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 3


def test_a_list_of_prompts_is_counted_plainly(engine: SimEngine) -> None:
    alone = [
        usage_of(engine.post("/v1/completions", {"prompt": prompt, "max_tokens": 2}).json())[0]
        for prompt in ("a wave", "the long low tide")
    ]
    answer = engine.post(
        "/v1/completions", {"prompt": ["a wave", "the long low tide"], "max_tokens": 2, "n": 2}
    ).json()
    assert usage_of(answer) == (sum(alone), 8)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


def test_text_is_a_function_of_prompt_and_seed(engine: SimEngine) -> None:
    def text(**more: object) -> str:
        content: str = engine.post("/v1/chat/completions", CHAT | {"max_tokens": 20} | more).json()[
            "choices"
        ][0]["message"]["content"]
        return content

    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)


def test_text_counts_as_many_tokens_as_usage_says(engine: SimEngine) -> None:
    answer = engine.post("/v1/completions", {"prompt": "sea", "max_tokens": 30, "ignore_eos": True}).json()
    assert engine.post("/tokenize", {"prompt": answer["choices"][0]["text"]}).json()["count"] == 30


def test_a_continued_message_gives_the_rest_of_the_same_text(engine: SimEngine) -> None:
    whole = engine.post("/v1/chat/completions", CHAT | {"max_tokens": 12}).json()["choices"][0]["message"][
        "content"
    ]
    start = engine.post("/v1/chat/completions", CHAT | {"max_tokens": 5}).json()["choices"][0]["message"][
        "content"
    ]
    messages = [*CHAT["messages"], {"role": "assistant", "content": start}]  # type: ignore[misc]
    body = CHAT | {
        "messages": messages,
        "max_tokens": 7,
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    assert (
        start + engine.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] == whole
    )


def test_without_ignore_eos_a_text_ends_by_itself_and_min_tokens_puts_that_off(engine: SimEngine) -> None:
    body = {"messages": CHAT["messages"], "max_tokens": 500}
    ended = engine.post("/v1/chat/completions", body).json()
    length = ended["usage"]["completion_tokens"]
    assert (ended["choices"][0]["finish_reason"], length < 500) == ("stop", True)
    longer = engine.post("/v1/chat/completions", body | {"min_tokens": length + 10}).json()
    assert longer["usage"]["completion_tokens"] == length + 11


def test_a_stop_string_ends_the_text_before_it_and_is_never_shown(engine: SimEngine) -> None:
    text = engine.post("/v1/completions", {"prompt": "sea", "max_tokens": 30, "ignore_eos": True}).json()[
        "choices"
    ][0]["text"]
    stop = text.split(" ")[6] + " " + text.split(" ")[7][:2]
    body = {"prompt": "sea", "max_tokens": 30, "ignore_eos": True, "stop": ["nowhere", stop]}
    whole = engine.post("/v1/completions", body).json()["choices"][0]
    assert (whole["text"], whole["finish_reason"], whole["stop_reason"]) == (
        text[: text.index(stop)],
        "stop",
        stop,
    )
    chunks = events(engine.post("/v1/completions", body | {"stream": True}).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]


def test_prefix_cache_finds_full_blocks_of_the_same_salt_only(engine: SimEngine) -> None:
    body = {
        "messages": [{"role": "user", "content": "the quick brown fox " * 20}],
        "max_tokens": 1,
        "cache_salt": "tenant-a",
    }

    def details() -> dict[str, int]:
        found: dict[str, int] = engine.post("/v1/chat/completions", body).json()["usage"][
            "prompt_tokens_details"
        ]
        return found

    first, again = details(), details()
    assert first["cached_tokens"] == 0
    assert first["created_cache_tokens"] == again["cached_tokens"] > 0
    assert again["cached_tokens"] % 16 == 0
    body["cache_salt"] = "tenant-b"
    assert details()["cached_tokens"] == 0


def test_messages_split_the_prompt_into_fresh_written_and_read(engine: SimEngine) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "the quick brown fox " * 20}], "max_tokens": 1}
    first, again = (engine.post("/v1/messages", body).json()["usage"] for _ in range(2))
    assert first["cache_creation_input_tokens"] == again["cache_read_input_tokens"] > 0
    assert sum(first[name] for name in first if name != "output_tokens") == sum(
        again[name] for name in again if name != "output_tokens"
    )


def test_logprobs_name_every_token(engine: SimEngine) -> None:
    chat = engine.post(
        "/v1/chat/completions", CHAT | {"max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    ).json()["choices"][0]
    assert "".join(entry["token"] for entry in chat["logprobs"]["content"]) == chat["message"]["content"]
    assert {len(entry["top_logprobs"]) for entry in chat["logprobs"]["content"]} == {2}
    completion = engine.post("/v1/completions", {"prompt": "a", "max_tokens": 3, "logprobs": 1}).json()[
        "choices"
    ][0]
    assert "".join(completion["logprobs"]["tokens"]) == completion["text"]


def test_echo_puts_the_prompt_first(engine: SimEngine) -> None:
    shown = engine.post("/v1/completions", {"prompt": "a b", "max_tokens": 0, "echo": True}).json()
    assert (shown["choices"][0]["text"], shown["usage"]["completion_tokens"]) == ("a b", 1)


def test_tokens_can_be_turned_back_into_text(engine: SimEngine) -> None:
    tokens = engine.post("/tokenize", {"prompt": "the deep blue sea"}).json()
    assert engine.post("/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": "the deep blue sea"}


def test_count_tokens_says_what_messages_will_bill(engine: SimEngine) -> None:
    counted = engine.post("/v1/messages/count_tokens", CHAT).json()["input_tokens"]
    assert usage_of(engine.post("/v1/messages", BODIES["/v1/messages"]).json())[0] == counted
