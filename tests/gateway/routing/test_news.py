"""What gateways tell each other: bounded, and read back as it was told."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.news import HASHES_MAX, Outbox, read_news
from gateway.routing.prompt_hashes import joined_hash

lengths = st.lists(st.integers(0, 120), max_size=60)


@given(lengths)
def test_a_message_is_bounded_and_says_the_beginnings(prompts: list[int]) -> None:
    outbox = Outbox()
    for number, length in enumerate(prompts):
        outbox.add_prompt("i1", "e1", [joined_hash(number, each) for each in range(length)])
        outbox.add_session("i2", "e2", joined_hash(number, 1))
    message = outbox.take("g1", {"i1": (1, 2)})
    news = read_news(message)
    assert sum(len(sent.hashes) for sent in (*news.prompts, *news.sessions)) <= HASHES_MAX
    assert all(sent.hashes == list(range(len(sent.hashes))) for sent in news.prompts)
    assert len(message) < 64 * HASHES_MAX
    assert read_news(outbox.take("g1", {})).prompts == []


def test_the_longest_message_says_what_fits() -> None:
    outbox = Outbox()
    outbox.add_prompt("i1", "e1", [joined_hash(1, each) for each in range(HASHES_MAX + 100)])
    outbox.add_prompt("i1", "e1", [joined_hash(2, 1)])
    (sent,) = read_news(outbox.take("g1", {})).prompts
    assert len(sent.hashes) == HASHES_MAX


@pytest.mark.parametrize(
    "message",
    [
        b"", b"{", b"[]", b"\xff", b'{"gateway":"g"}',
        b'{"gateway":"g","loads":{"i":[-1,0]},"prompts":[],"sessions":[]}',
        b'{"gateway":"g","loads":{},"prompts":[["i","e",1,["x"]]],"sessions":[]}',
        b'{"gateway":"g","loads":{},"prompts":[["i","e",999999999999999999,[1]]],"sessions":[]}',
    ],
)  # fmt: skip
def test_what_is_no_message_is_not_read(message: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        read_news(message)


def test_a_later_version_may_say_more() -> None:
    message = b'{"gateway":"g","loads":{},"prompts":[],"sessions":[],"more":1}'
    assert read_news(message).gateway == "g"
