"""What records add up to, and when a promise counts as kept."""

from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.scenarios.arrivals import Arrival, Shape
from loadtest.scenarios.client import read_end
from loadtest.scenarios.measures import (
    accumulated,
    backlogged,
    codes,
    due,
    passed_over,
    reached_after,
    refusals,
    service_bound,
    service_difference,
    spans,
    ttft_ms,
    work_between,
)
from loadtest.scenarios.reclaim import LONG, could_have_finished
from loadtest.scenarios.record import Ended, Record
from loadtest.scenarios.result import Result, Verdict, at_least, at_most, near, write
from loadtest.scenarios.speed import EngineSpeed

# one output token = one input token = one unit
SPEED = EngineSpeed(slots=10, decode_ms=10, prefill_tokens_per_s=1000)


def streamed(
    first_s: float, tokens: int, *, gap_s: float = 0.1, prompt: int = 0, cached: int = 0, at_s: float = 0.0
) -> Record:
    record = Record(
        arrival=Arrival(at_s, "a", Shape(prompt, tokens)), sent_s=at_s, ended=Ended.COMPLETE, status=200
    )
    for number in range(tokens):
        record.see(first_s + number * gap_s, 1)
    record.prompt, record.cached, record.end_s = prompt, cached, first_s + (tokens - 1) * gap_s
    return record


def refused(at_s: float, end_s: float) -> Record:
    return Record(
        arrival=Arrival(at_s, "a", Shape(1, 1)),
        sent_s=at_s,
        end_s=end_s,
        ended=Ended.REFUSED,
        status=429,
        code="queue_timeout",
    )


def test_uncached_input_counts_with_the_first_token_and_output_as_it_comes() -> None:
    record = streamed(10.0, 5, gap_s=1.0, prompt=100, cached=40)
    assert work_between([record], SPEED, 0, 10) == 0
    assert work_between([record], SPEED, 10, 10.5) == pytest.approx(60 + 1)
    assert work_between([record], SPEED, 10.5, 12.5) == pytest.approx(2)
    assert work_between([record], SPEED, 0, 100) == pytest.approx(65)


@given(st.integers(1, 200), st.floats(0.001, 0.3), st.floats(0, 20), st.floats(0.05, 60))
def test_windows_that_meet_add_up_to_all_work(
    tokens: int, gap_s: float, first_s: float, cut_s: float
) -> None:
    record = streamed(first_s, tokens, gap_s=gap_s, prompt=7)
    parts = work_between([record], SPEED, 0, cut_s) + work_between([record], SPEED, cut_s, 1000)
    assert parts == pytest.approx(7 + tokens)
    assert accumulated([record], SPEED, [1000.0]) == [pytest.approx(7 + tokens)]


def test_marks_are_few_and_keep_the_last_token() -> None:
    record = streamed(0.0, 1000, gap_s=0.005)
    assert len(record.marks) < 60
    assert record.marks[-1] == (pytest.approx(4.995), 1000)
    assert work_between([record], SPEED, 0, 2.5) == pytest.approx(500, abs=25)


def test_accumulated_work_is_told_at_each_time_of_the_grid() -> None:
    records = [streamed(1.0, 2, gap_s=1.0, prompt=10), streamed(2.5, 1, prompt=5)]
    assert accumulated(records, SPEED, [0.0, 1.0, 2.0, 3.0]) == pytest.approx([0, 11, 12, 18])


def test_backlogged_is_who_waits_for_longer_than_an_idle_engine_takes() -> None:
    grid = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    quick, slow, never = (
        streamed(0.2, 1),
        streamed(2.5, 1, at_s=0.5),
        Record(arrival=Arrival(4, "a", Shape(1, 1)), sent_s=4.0),
    )
    assert backlogged([quick], grid, 0.3) == [False] * 6
    assert backlogged([quick, slow], grid, 0.3) == [False, True, True, False, False, False]
    assert backlogged([slow, never], grid, 0.3) == [False, True, True, False, False, True]
    assert backlogged([refused(0, 2.5)], grid, 0.3) == [False, True, True, False, False, False]


def test_spans_are_unbroken_runs_of_enough_points() -> None:
    flags = [bool(int(flag)) for flag in "0110111101"]
    assert spans(flags, 2) == [(1, 3), (4, 8)]
    assert spans(flags, 1) == [(1, 3), (4, 8), (9, 10)]
    assert spans([True] * 3, 3) == [(0, 3)]


def test_service_difference_is_the_worst_interval_while_both_were_backlogged() -> None:
    mine = [0.0, 10, 20, 20, 20, 30, 100]
    other = [0.0, 0, 0, 15, 30, 40, 40]
    both = [True] * 6 + [False]
    # From t=2 to t=4 the other got 30 and mine nothing; what came after the backlog does not count.
    found = service_difference(mine, other, both, 1.0)
    assert found.units == 30
    assert found.backlogged_s == 5
    # Broken in the middle, neither part holds the whole swing.
    broken = [True, True, True, False, True, True, False]
    assert service_difference(mine, other, broken, 1.0).units == 20


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=30))
def test_service_difference_is_what_trying_every_interval_finds(gains: list[tuple[float, float]]) -> None:
    mine, other = [0.0], [0.0]
    for gain, theirs in gains:
        mine.append(mine[-1] + gain)
        other.append(other[-1] + theirs)
    points = range(len(mine))
    worst = max(abs((mine[b] - mine[a]) - (other[b] - other[a])) for a in points for b in points if a < b)
    found = service_difference(mine, other, [True] * len(mine), 1.0, span_s_min=1.0)
    assert found.units == pytest.approx(worst, abs=1e-6)


def test_the_bound_is_within_the_papers_and_grows_with_what_is_in_flight() -> None:
    speed = EngineSpeed()
    bound = service_bound(speed, 32, 100, 200)
    assert bound == pytest.approx(2 * (100 + 6.25 * 32 * 200))
    paper = 2 * max(speed.units(100, 0), speed.units(0, 32 * (100 + 200)))
    assert bound <= paper
    assert service_bound(speed, 64, 100, 200) > bound > service_bound(speed, 32, 100, 200, weight=4)


def test_time_to_first_token_counts_from_when_it_was_due() -> None:
    late = streamed(1.0, 1, at_s=0.4)
    late.sent_s = 0.9
    assert ttft_ms([late], 0.5) == pytest.approx(600)
    assert ttft_ms([refused(0, 1)], 0.5) is None


def test_what_was_not_served_is_told_by_kind() -> None:
    records = [refused(0, 1), refused(5, 6), streamed(0, 1), Record(arrival=Arrival(0, "a", Shape(1, 1)))]
    assert codes(records) == {"refused 429 queue_timeout": 2, "open": 1}
    assert refusals(records) == 2
    assert due(records, 5, 6) == [records[1]]


def test_nobody_is_refused_after_a_wait_while_a_later_one_was_served() -> None:
    given_up = refused(0.0, 10.0)
    assert passed_over([given_up, streamed(5.0, 1, at_s=3.0)]) == 1
    # Served earlier, served after it had given up, or sent before it: nobody was passed over.
    assert passed_over([refused(3.0, 13.0), streamed(5.0, 1, at_s=2.0)]) == 0
    assert passed_over([given_up, streamed(10.5, 1, at_s=3.0)]) == 0
    # Refused at once: it never waited.
    assert passed_over([refused(0.0, 0.1), streamed(5.0, 1, at_s=3.0)]) == 0


def test_the_first_window_at_a_rate_is_found() -> None:
    # Nothing for three seconds, then ten tokens a second.
    record = streamed(3.0, 100, gap_s=0.1)
    assert reached_after([record], SPEED, 9.0, 0.0, 10.0, 1.0) == pytest.approx(3.0, abs=0.2)
    assert reached_after([record], SPEED, 20.0, 0.0, 10.0, 1.0) is None


def test_a_cut_stream_is_judged_by_the_pace_that_it_had() -> None:
    def cut(first_s: float, tokens: int, end_s: float) -> Record:
        record = Record(
            arrival=Arrival(0, "a", LONG),
            sent_s=0,
            first_s=first_s,
            output=tokens,
            end_s=end_s,
            ended=Ended.CUT,
        )
        record.marks = [(first_s, 1), (end_s, tokens)]
        return record

    # 1,000 of 2,000 tokens in 10 s: it needs 10 s more.
    assert could_have_finished(cut(0, 1000, 10.0), deadline_s=20.5)
    assert not could_have_finished(cut(0, 1000, 10.0), deadline_s=19.5)
    assert not could_have_finished(streamed(0, 5), deadline_s=100)
    # Cut before its first token and before the deadline: nobody can say that it could not.
    assert could_have_finished(
        Record(arrival=Arrival(0, "a", LONG), end_s=1.0, ended=Ended.CUT), deadline_s=2
    )


def test_a_stream_is_complete_only_with_its_end() -> None:
    usage = (
        b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":5,'
        b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    )
    for tail, ended in (
        (usage + b"data: [DONE]\n\n", Ended.COMPLETE),
        (usage, Ended.CUT),
        (b'data: {"error":{"code":"engine_died"}}\n\n', Ended.CUT),
        (b"", Ended.CUT),
    ):
        record = Record(arrival=Arrival(0, "a", Shape(1, 1)))
        record.see(1.0, 3)
        read_end(record, b'lf a line"}}]}\n\n' + tail)
        assert record.ended is ended
        if usage in tail:
            assert (record.prompt, record.cached, record.output, record.marks[-1]) == (9, 4, 5, (1.0, 5))
        if b"error" in tail:
            assert record.code == "engine_died"


def test_promises_are_kept_at_their_edge_and_broken_past_it() -> None:
    assert at_most("x", 1.5, 1.5).met
    assert not at_most("x", 1.51, 1.5).met
    assert at_least("x", 0.95, 0.95).met
    assert not at_least("x", 0.94, 0.95).met
    assert near("x", 98.0, 100, 0.02).met
    assert not near("x", 97.9, 100, 0.02).met
    assert not near("x", 102.1, 100, 0.02).met
    assert not Verdict("x", None, high=1).met
    assert not Result("nothing was measured", []).met


def test_results_are_added_to_those_of_other_scenarios(tmp_path: Path) -> None:
    path = tmp_path / "home" / "scenarios.json"
    write([Result("one", [at_most("x", 2, 1)])], path)
    write([Result("two", [at_most("x", 1, 1)], {"y": 3})], path)
    known = orjson.loads(path.read_bytes())
    assert (known["one"]["met"], known["two"]["met"], known["two"]["figures"]) == (False, True, {"y": 3})
    assert known["one"]["verdicts"] == [{"what": "x", "value": 2, "low": None, "high": 1, "met": False}]
