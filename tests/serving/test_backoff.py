"""Promises of the pauses between starts."""

from serving.backoff import Backoff


def test_pauses_double_up_to_a_minute() -> None:
    backoff = Backoff()
    assert [backoff.after(0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_five_healthy_minutes_start_the_row_anew_and_less_does_not() -> None:
    backoff = Backoff()
    assert [backoff.after(0), backoff.after(299), backoff.after(300), backoff.after(0)] == [1, 2, 1, 2]
