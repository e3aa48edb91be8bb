"""When an instance counts as silent: measured by its own first tokens, and never by a caller that does not
read.
"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from gateway.protocol import parse_request
from gateway.request import Route
from gateway.routes import ROUTES
from gateway.stream.meter_choices import ChoicesMeter
from gateway.upstream.attempt import Attempt
from gateway.upstream.progress import SILENT_S_MIN, FirstTokens, Progress

LIMIT_S = 60.0


def entry(name: str) -> InstanceEntry:
    return InstanceEntry(
        instance=name,
        model="m",
        pool="p",
        cell="c",
        url="http://127.0.0.1:1",
        key=None,
        epoch="e",
        status=InstanceStatus.READY,
    )


def attempt(name: str, started_at: float, *, stream: bool = True) -> Attempt:
    raw = b'{"model":"m","prompt":"x","stream":%s}' % (b"true" if stream else b"false")
    made = Attempt.on(entry(name), parse_request(ROUTES[Route.COMPLETIONS], raw), "req_1")
    made.started_at, made.in_engine = started_at, True
    return made


def says(spoken: Attempt, tokens: int) -> None:
    assert isinstance(spoken.meter, ChoicesMeter)
    spoken.meter.feed(
        b'data: {"id":"a","choices":[{"index":0,"text":"x","finish_reason":null}],"usage":{"prompt_tokens":1,'
        b'"total_tokens":%d,"completion_tokens":%d}}\n\n' % (tokens + 1, tokens)
    )


@pytest.fixture
def progress() -> Progress:
    """One that has seen first tokens of half a second."""
    made = Progress()
    for at in range(8):
        made.first_token(attempt("a", at + 1.0), at + 1.5)
    return made


def test_an_instance_without_a_token_for_too_long_is_silent(progress: Progress) -> None:
    stuck = attempt("a", 100.0)
    assert progress.look([stuck], 100.0 + SILENT_S_MIN - 0.1, LIMIT_S) == []
    assert progress.look([stuck], 100.0 + SILENT_S_MIN, LIMIT_S) == [stuck]


def test_one_that_makes_tokens_for_any_request_is_not(progress: Progress) -> None:
    stuck, spoken = attempt("a", 100.0), attempt("a", 100.0)
    for second in range(1, 10):
        says(spoken, second)
        assert progress.look([stuck, spoken], 100.0 + second, LIMIT_S) == []
    assert progress.look([stuck, spoken], 109.0 + SILENT_S_MIN, LIMIT_S) == [stuck, spoken]


def test_requests_that_keep_coming_do_not_hide_the_silence(progress: Progress) -> None:
    stuck = [attempt("a", 100.0)]
    found: list[Attempt] = []
    for half_seconds in range(1, 12):
        found = progress.look(stuck, 100 + half_seconds / 2, LIMIT_S)
        stuck.append(attempt("a", 100 + half_seconds / 2))
    assert stuck[0] in found
    assert stuck[-2] not in found  # it has not waited for long


def test_a_caller_that_does_not_read_is_no_silence(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = attempt("a", 100.0)
    monkeypatch.setattr(Attempt, "paused", True)
    assert progress.look([slow], 200.0, LIMIT_S) == []
    monkeypatch.setattr(Attempt, "paused", False)
    assert progress.look([slow], 200.0 + SILENT_S_MIN - 0.1, LIMIT_S) == []


def test_whole_answers_alone_say_nothing_and_move_with_the_streams(progress: Progress) -> None:
    whole = attempt("a", 100.0, stream=False)
    assert progress.look([whole], 150.0, LIMIT_S) == []
    assert progress.look([whole, attempt("a", 100.0)], 150.0, LIMIT_S)[:1] == [whole]


def test_of_an_engine_that_was_started_again_nothing_is_known(progress: Progress) -> None:
    again = attempt("a", 100.0)
    again.instance = replace(again.instance, epoch="e2")
    assert progress.look([again], 150.0, LIMIT_S) == []


def test_of_an_instance_that_has_answered_nothing_yet_nothing_is_known() -> None:
    assert Progress().look([attempt("new", 100.0)], 1000.0, LIMIT_S) == []


@given(
    st.lists(st.tuples(st.floats(0.01, 30), st.integers(1, 100_000)), max_size=40),
    st.integers(1, 200_000),
)
def test_the_bound_lies_between_its_limits_and_follows_prompts_of_that_length(
    samples: list[tuple[float, int]], prompt_tokens: int
) -> None:
    seen = FirstTokens("e")
    for seconds, prompt in samples:
        seen.took(seconds, prompt)
    bound = seen.silent_s_max(prompt_tokens, LIMIT_S)
    assert SILENT_S_MIN <= bound <= LIMIT_S
    comparable = [seconds for seconds, prompt in samples[-32:] if 2 * prompt >= prompt_tokens]
    if len(samples) >= 4 and comparable:
        assert bound == min(LIMIT_S, max(SILENT_S_MIN, 4 * max(comparable)))
