"""How a stream goes on from its text: what can, which tokens the text carries, and that no stop string is
lost where two parts meet.
"""

import json
from collections.abc import Container
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import parse_request
from gateway.request import ParsedRequest, Route
from gateway.routes import ROUTES
from gateway.stream.continuation import Carried, DeliveredEvents, Splice, can_resume
from gateway.stream.meter import ProtocolViolation

PATHS: dict[Route, dict[str, Any]] = {
    Route.CHAT: {"messages": [{"role": "user", "content": "x"}]},
    Route.COMPLETIONS: {"prompt": "x"},
}


def asked(route: Route = Route.COMPLETIONS, **fields: Any) -> ParsedRequest:
    body = {"model": "m", "stream": True, "max_tokens": 50, **PATHS[route], **fields}
    return parse_request(ROUTES[route], json.dumps(body).encode())


def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "cmpl-a",
        "choices": [{"index": 0, "text": text, "finish_reason": finish, "stop_reason": None}],
    }


def event(text: str) -> bytes:
    return b"data: " + json.dumps(chunk(text)).encode() + b"\n\n"


def text_of(carried: Carried) -> str:
    """What the caller has."""
    return carried.text + carried.rest


def passed(tokens: list[str], held_back: int, folded: Container[int] = ()) -> DeliveredEvents:
    """What an engine shows of these tokens, so many characters late: an event for each. `folded`: made text
    of after so many.
    """
    made, whole, shown = DeliveredEvents(), "", 0
    for count, token in enumerate(tokens, 1):
        if count in folded:
            made.fold(asked(stop="x" * (held_back + 1)))
        whole += token
        until = max(shown, len(whole) - held_back)
        made.add(event(whole[shown:until]))
        made.counts.append(count)
        shown = until
    return made


@pytest.mark.parametrize("route", list(PATHS))
@pytest.mark.parametrize(
    ("fields", "able"),
    [
        ({}, True),
        ({"stop": ["END"]}, True),
        ({"frequency_penalty": 0, "presence_penalty": 0.0}, True),
        ({"include_stop_str_in_output": True}, True),
        (
            {
                "temperature": 0.7,
                "top_p": 0.9,
                "top_k": 5,
                "min_p": 0.1,
                "repetition_penalty": 1.1,
                "logit_bias": {"5": 1},
            },
            True,
        ),
        (
            {
                "user": "u",
                "service_tier": "flex",
                "metadata": {"a": "b"},
                "stop_token_ids": [5],
                "min_tokens": 3,
                "ignore_eos": True,
            },
            True,
        ),
        ({"seed": 5}, False),
        ({"seed": 5, "temperature": 0.1}, False),
        ({"seed": 5, "temperature": 0}, True),
        ({"max_tokens": None}, True),
        ({"seed": 0}, False),
        ({"frequency_penalty": 0.5}, False),
        ({"presence_penalty": -0.5}, False),
        ({"stop": "END", "include_stop_str_in_output": True}, False),
        ({"n": 2}, False),
        ({"stream": False}, False),
    ],
)
def test_only_what_a_text_carries_can_resume(route: Route, fields: dict[str, Any], able: bool) -> None:
    assert can_resume(asked(route, **fields)) is able


@pytest.mark.parametrize("route", list(PATHS))
def test_a_parameter_that_nobody_has_thought_of_cannot_resume(route: Route) -> None:
    parsed = asked(route)
    parsed.body["new_parameter"] = 1
    assert not can_resume(parsed)


def test_no_log_probabilities_beside_that_of_what_was_said_are_log_probabilities() -> None:
    assert not can_resume(asked(logprobs=0))
    assert not can_resume(asked(Route.CHAT, logprobs=True, top_logprobs=0))


def test_tokens_without_text_of_their_own_are_not_carried() -> None:
    """Two of the three tokens of a character: the engine has counted them, and their text has not come."""
    given_ = DeliveredEvents()
    for count, text in enumerate(["🌊", " ", "", ""], 3):
        given_.add(event(text))
        given_.counts.append(count)
    assert given_.carried(asked()) == ("🌊", 3, " ")
    assert given_.close(asked(), chunk("", "abort"), 6) == b""
    assert given_.carried(asked()) == ("🌊", 3, " ")


@given(
    st.lists(st.text("ab ", min_size=1, max_size=5), min_size=1, max_size=12),
    st.text("cd", min_size=1, max_size=9),
)
def test_what_was_held_back_is_given_when_no_stop_string_has_begun(tokens: list[str], stop: str) -> None:
    request, whole = asked(stop=stop), "".join(tokens)
    made = passed(tokens, len(stop) - 1)
    shown = text_of(made.carried(request))
    last = made.close(request, chunk(whole[len(shown) :], "abort"), len(tokens))
    carried = made.carried(request)
    assert text_of(carried) == whole
    if not whole.isspace() and not whole[-1].isspace():
        assert carried == (whole, len(tokens), "")
    if last:
        (choice,) = json.loads(last[len(b"data: ") :])["choices"]
        assert (choice["text"], choice["finish_reason"]) == (whole[len(shown) :], None)


@given(
    st.lists(st.text("ab ", min_size=1, max_size=5), min_size=1, max_size=12),
    st.text("ab ", min_size=1, max_size=9),
)
def test_what_may_become_a_stop_string_is_left_to_the_next_part(tokens: list[str], stop: str) -> None:
    request, whole = asked(stop=stop), "".join(tokens)
    ends = whole.find(stop)
    if ends >= 0:  # the engine would have ended it there
        whole = whole[: ends + len(stop) - 1]
        tokens = [whole]
    made = passed(tokens, len(stop) - 1)
    shown = text_of(made.carried(request))
    made.close(request, chunk(whole[len(shown) :], "abort"), len(tokens))
    text, carried = text_of(made.carried(request)), made.carried(request).tokens
    partial = max((size for size in range(1, len(stop)) if whole.endswith(stop[:size])), default=0)
    assert whole.startswith(text)
    assert len(shown) <= len(text) <= max(len(shown), len(whole) - partial)
    assert 0 <= carried <= len(tokens)


@given(
    st.lists(st.text("ab ", min_size=1, max_size=5), min_size=1, max_size=20),
    st.sets(st.integers(1, 20)),
    st.integers(0, 9),
)
def test_a_text_is_continued_from_the_end_of_a_token(
    tokens: list[str], folded: set[int], held_back: int
) -> None:
    request = asked(stop="x" * (held_back + 1))
    text, count, rest = passed(tokens, held_back, folded).carried(request)
    assert text == "".join(tokens[:count])
    assert text + rest == "".join(tokens)[: max(0, len("".join(tokens)) - held_back)]
    assert count < len(tokens) or not rest


def test_a_text_that_is_no_utf_8_is_not_continued() -> None:
    delivered = DeliveredEvents()
    delivered.add(event("x").replace(b'"x"', b'"\xff"'))
    delivered.counts.append(1)
    delivered.fold(asked())
    with pytest.raises(ValueError, match="more than text"):
        delivered.carried(asked())


def test_a_text_is_not_continued_after_a_blank() -> None:
    made = passed(["Bran", ".", "\n", "\n", "One"], 3)
    assert made.carried(asked(stop="xxxx")) == ("Bran.", 2, "\n\n")
    made.close(asked(stop="xxxx"), chunk("One", "abort"), 5)
    assert made.carried(asked(stop="xxxx")) == ("Bran.\n\nOne", 5, "")


@given(
    st.lists(st.text("ab ", min_size=1, max_size=5), min_size=1, max_size=12),
    st.sets(st.integers(1, 12)),
    st.integers(0, 9),
    st.booleans(),
)
def test_a_long_answer_is_kept_as_text_and_means_the_same(
    tokens: list[str], folded: set[int], held_back: int, closed: bool
) -> None:
    request, whole = asked(stop="x" * (held_back + 1)), "".join(tokens)
    plain, short = passed(tokens, held_back), passed(tokens, held_back, folded)
    shown = text_of(plain.carried(request))
    if closed:
        last = chunk(whole[len(shown) :], "abort")
        assert plain.close(request, dict(last), 12) == short.close(request, dict(last), 12)
    assert text_of(plain.carried(request)) == text_of(short.carried(request))
    assert plain.started == short.started


def test_usage_of_the_whole_names_the_prompt_of_the_part_that_read_it_first() -> None:
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 5,
        "total_tokens": 35,
        "prompt_tokens_details": {"cached_tokens": 16},
    }
    closing = (
        b"data: "
        + json.dumps({"id": "cmpl-a-2", "choices": [], "usage": usage}, separators=(",", ":")).encode()
        + b"\n\n"
    )

    def rewritten(prompt: int | None) -> dict[str, Any]:
        splice = Splice(
            "a-2", "a", opened=True, prompt=prompt, cached=0, output=20 if prompt else 0, repeated=""
        )
        shown: dict[str, Any] = json.loads(splice.rewrite(closing)[len(b"data: ") :])
        assert shown["id"] == "cmpl-a"
        return dict(shown["usage"])

    assert rewritten(10) == {
        "prompt_tokens": 10, "completion_tokens": 25, "total_tokens": 35,
        "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    assert rewritten(None) == usage


def begun(*said: str, finish: str | None = None) -> str:
    """What a caller who has ` carto` gets of a part with these chunks, the last of which may finish it."""
    splice = Splice("a-2", "a", opened=True, prompt=1, cached=0, output=2, repeated=" carto")
    events = [event(text) for text in said]
    if finish is not None:
        events[-1] = b"data: " + json.dumps(chunk(said[-1], finish)).encode() + b"\n\n"
    passed_on = splice.rewrite(b"".join(events)).split(b"\n\n")[:-1]
    choices = [json.loads(each[len(b"data: ") :])["choices"][0] for each in passed_on]
    assert [choice["finish_reason"] for choice in choices].count(finish) == (1 if finish else len(choices))
    assert all(choice["text"] or choice["finish_reason"] for choice in choices)
    return "".join(choice["text"] for choice in choices)


def test_what_the_caller_has_is_not_said_again() -> None:
    assert begun(" cartographer", " who") == "grapher who"
    assert begun(" ", "", "ca", "rto", "gra", finish="length") == "gra"
    assert begun(" car", finish="length") == ""


def test_a_part_that_begins_otherwise_than_it_was_told_is_no_answer() -> None:
    with pytest.raises(ProtocolViolation):
        begun(" car", "rot")
