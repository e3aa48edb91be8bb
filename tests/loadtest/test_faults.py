"""Processes die and stand still at random under load, and leaks are made on purpose: a short run of what
`python -m loadtest.faults` does.
"""

import pytest

from loadtest.faults.__main__ import run, show


def test_every_request_is_accounted_for_whoever_dies_or_stands_still_and_each_leak_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Twelve callers would take all of the machine from the tests beside it.
    outcome = run(seed=21, kills=8, callers=4, leaks=("event", "token", "reservation"))
    wrong = show(outcome)
    said = capsys.readouterr().out
    assert wrong == [], said
    assert "8 faults" in said
    assert "leaked on purpose: req_" in said
    assert said.count("audit_request_unknown  req_") == 2
    assert said.count("audit_request_differs  req_") == 1
