"""Loops go on: through outages and bugs, and until they are told to stop."""

import logging
import threading
from collections.abc import Iterator

import pytest
import redis

from billing.loop import Loop, Seldom
from billing.metrics import BillingMetrics


def run(outcomes: Iterator[Exception | bool], caplog: pytest.LogCaptureFixture) -> tuple[int, float | None]:
    """Run a loop whose steps end so, then stop it. Returns how often it stepped, and its last degraded
    state.
    """
    stop = threading.Event()
    metrics = BillingMetrics()
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        outcome = next(outcomes, None)
        if outcome is None:
            stop.set()
            return False
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    caplog.set_level(logging.WARNING)
    Loop("thing", step, interval_ms=1, metrics=metrics).run(stop)
    return steps, metrics.registry.get_sample_value("taas_degraded", {"component": "thing"})


def test_a_loop_outlives_an_outage_and_says_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    assert run(iter([True, redis.ConnectionError("gone"), OSError("gone"), False]), caplog) == (5, 0)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "WARNING"]


def test_a_loop_outlives_a_bug_and_shows_where_it_was(caplog: pytest.LogCaptureFixture) -> None:
    assert run(iter([ZeroDivisionError(), False]), caplog) == (3, 0)
    assert caplog.records[0].exc_info is not None


def test_a_loop_is_degraded_while_it_fails() -> None:
    stop = threading.Event()
    metrics = BillingMetrics()

    def step() -> bool:
        stop.set()
        raise OSError("gone")

    Loop("thing", step, interval_ms=1, metrics=metrics).run(stop)
    assert metrics.registry.get_sample_value("taas_degraded", {"component": "thing"}) == 1


def test_a_step_that_finds_nothing_while_nothing_happens_is_done_now_and_then() -> None:
    seldom = Seldom(3)
    calm = [False, False, True, True, True, True, True, True, False, True, True, True]
    done = [seldom.is_due(calm=each) for each in calm]
    assert done == [True, True, True, False, True, False, False, True, True, True, False, True]
