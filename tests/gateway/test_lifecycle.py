"""The two turning points of a shutdown."""

from gateway.lifecycle import Lifecycle


def test_a_drain_ends_no_streams() -> None:
    lifecycle = Lifecycle()
    assert not lifecycle.draining
    lifecycle.begin_drain()
    assert lifecycle.draining
    assert not lifecycle.deadline_passed.is_set()


def test_deadline_implies_the_drain_and_calls_back_once() -> None:
    lifecycle, called = Lifecycle(), []
    lifecycle.on_deadline(lambda: called.append(lifecycle.draining))
    lifecycle.end_streams()
    lifecycle.end_streams()
    assert called == [True]


def test_who_comes_late_is_called_at_once() -> None:
    lifecycle, called = Lifecycle(), []
    lifecycle.end_streams()
    lifecycle.on_deadline(lambda: called.append("deadline"))
    assert called == ["deadline"]
