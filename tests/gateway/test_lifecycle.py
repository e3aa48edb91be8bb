"""The two turning points of a shutdown."""

from gateway.lifecycle import Lifecycle


def test_drain_calls_back_once() -> None:
    lifecycle, called = Lifecycle(), []
    lifecycle.on_drain(lambda: called.append("drain"))
    assert not lifecycle.draining
    lifecycle.begin_drain()
    lifecycle.begin_drain()
    assert lifecycle.draining
    assert lifecycle.drain_started.is_set()
    assert not lifecycle.deadline_passed.is_set()
    assert called == ["drain"]


def test_deadline_implies_the_drain_and_calls_back_once() -> None:
    lifecycle, called = Lifecycle(), []
    lifecycle.on_deadline(lambda: called.append("deadline"))
    lifecycle.on_drain(lambda: called.append("drain"))
    lifecycle.end_streams()
    lifecycle.end_streams()
    assert called == ["drain", "deadline"]


def test_who_comes_late_is_called_at_once() -> None:
    lifecycle, called = Lifecycle(), []
    lifecycle.end_streams()
    lifecycle.on_drain(lambda: called.append("drain"))
    lifecycle.on_deadline(lambda: called.append("deadline"))
    assert called == ["drain", "deadline"]
