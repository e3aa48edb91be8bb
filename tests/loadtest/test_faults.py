"""Processes die and stand still at random under load, and leaks are made on purpose: a short run of
`python -m loadtest.faults`.
"""

import subprocess
import sys


def run(*words: str) -> str:
    """What it prints. AssertionError when a request is not accounted for, or a leak is not named."""
    command = [sys.executable, "-m", "loadtest.faults", "--seeds", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=570)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_request_is_accounted_for_whoever_dies_or_stands_still_and_each_leak_is_named() -> None:
    # Twelve callers would take all of the machine from the tests beside it.
    leaks = [word for leak in ("event", "token", "reservation") for word in ("--leak", leak)]
    said = run("--first-seed", "21", "--kills", "8", "--callers", "4", *leaks)
    assert "8 faults" in said
    assert "leaked on purpose: req_" in said
    assert said.count("audit_request_unknown  req_") == 2
    assert said.count("audit_request_differs  req_") == 1
