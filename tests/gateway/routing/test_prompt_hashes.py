"""Hashes of prompts: one for each full block, the same while two prompts are the same."""

import itertools
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.prompt_hashes import (
    BLOCK_BYTES,
    BLOCK_ENDS,
    chain,
    joined_hash,
    name_hash,
    prompt_bytes,
    seed_of,
    split_hash,
)


@given(st.binary(max_size=40_000), st.data())
def test_two_prompts_share_the_hashes_of_the_blocks_that_they_share(
    prompt: bytes, data: st.DataObject
) -> None:
    same = data.draw(st.integers(0, len(prompt)))
    other = prompt[:same] + bytes(255 - each for each in prompt[same:])
    mine, theirs = chain(prompt, 7), chain(other, 7)
    shared = sum(end <= same for end in BLOCK_ENDS)
    assert mine[:shared] == theirs[:shared]
    assert not set(mine[shared:]) & set(theirs[shared:])


def test_blocks_grow_so_that_no_prompt_has_many_or_loses_much() -> None:
    assert chain(b"x" * (BLOCK_BYTES - 1), 1) == []
    assert len(chain(b"x" * BLOCK_BYTES, 1)) == 1
    assert len(chain(b"x" * 4 * 1024 * 1024, 1)) < 130
    assert all(b - a <= max(BLOCK_BYTES, a / 16) for a, b in itertools.pairwise(BLOCK_ENDS))


def test_a_hash_can_be_split_and_joined() -> None:
    seed = seed_of("prompt", "m", "m", "salt")
    for hashed in [*chain(b"y" * 2000, seed), name_hash(b"s", seed)]:
        assert split_hash(hashed)[0] == seed
        assert joined_hash(*split_hash(hashed)) == hashed
    assert seed < 2**48


def test_the_prompt_has_one_form_whatever_the_order_of_the_body() -> None:
    messages = [{"role": "user", "content": "hi"}]
    body: dict[str, Any] = {"messages": messages, "temperature": 1, "tools": [{"a": 1}]}
    other: dict[str, Any] = {"tools": [{"a": 1}], "max_tokens": 5, "messages": messages}
    assert prompt_bytes(body, "messages") == prompt_bytes(other, "messages")
    assert prompt_bytes(body, "messages") == orjson.dumps([{"a": 1}]) + orjson.dumps(messages)
    longer = {"messages": [*messages, {"role": "assistant", "content": "hello"}], "tools": [{"a": 1}]}
    assert prompt_bytes(longer, "messages").startswith(prompt_bytes(body, "messages")[:-1])
