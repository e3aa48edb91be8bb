"""What gateways, engines and workers tell each other of cached prompts."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.wire.cached_prompt import CachedPrompt, lost_message, read_lost

WORD = st.integers(0, 2**32 - 1)


@given(st.integers(0, 2**48 - 1), st.lists(st.tuples(WORD, WORD), max_size=200))
def test_a_prompt_is_read_as_it_was_told(seed: int, beginnings: list[tuple[int, int]]) -> None:
    prompt = CachedPrompt(seed, tuple(beginnings))
    text = prompt.to_text()
    assert b"\r" not in text
    assert b"\n" not in text
    assert CachedPrompt.from_text(text.decode()) == prompt


@given(st.text(max_size=100) | st.binary(max_size=100).map(lambda raw: raw.hex()))
def test_what_is_none_is_refused(text: str) -> None:
    try:
        CachedPrompt.from_text(text)
    except ValueError:
        return
    # whatever could be read can be told
    assert CachedPrompt.from_text(CachedPrompt.from_text(text).to_text().decode())


def test_the_longest_of_too_many_beginnings_are_not_told() -> None:
    many = tuple((number, number) for number in range(3_000))
    assert CachedPrompt.from_text(CachedPrompt(1, many).to_text().decode()).beginnings == many[:1024]


def test_what_was_lost_is_read_as_it_was_told() -> None:
    lost = read_lost(lost_message("i", "e", [(7, [1, 2])]))
    assert (lost.instance, lost.epoch, lost.hashes) == ("i", "e", [(7, [1, 2])])
    assert read_lost(lost_message("i", "e", None)).hashes is None


@pytest.mark.parametrize(
    "message",
    [b"", b"[]", b'{"instance":"i","epoch":"e"}', b'{"instance":"","epoch":"e","hashes":null}',
     b'{"instance":"i","epoch":"e","hashes":[[-1,[1]]]}'],
)  # fmt: skip
def test_another_message_is_refused(message: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        read_lost(message)
