"""The comparison of ways to choose an engine: the same prompts for each way, and what engines have cached."""

import re
import subprocess
import sys
from pathlib import Path

from loadtest.bench.routing import PROMPT_TOKENS, schedule
from loadtest.children import answers, free_port
from loadtest.engine.tokens import split
from loadtest.forked import ForkedProgram
from loadtest.settings import child_environment
from tests.fixtures.gateway import wait_until


def test_prompts_have_their_length_and_share_what_they_should() -> None:
    requests = schedule(50, rate=20.0, seconds=5.0, number=1)
    assert requests == schedule(50, rate=20.0, seconds=5.0, number=1)
    assert 60 < len(requests) < 140
    for request in requests:
        assert len(split(request.shared)) == len(split(request.own)) == PROMPT_TOKENS // 2
    assert len({request.own for request in requests}) == len(requests)
    assert len({request.shared for request in requests}) < len(requests)
    assert {request.shared for request in schedule(0, 20.0, 1.0, 1)} == {""}


def test_engines_that_share_a_process_all_end_when_they_are_told_to(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    engines = ForkedProgram(
        "loadtest.bench.routed_engines", [str(port) for port in ports], child_environment({}), folder=tmp_path
    )
    try:
        for port in ports:
            wait_until(answers(f"http://127.0.0.1:{port}/health"), "engines")
        engines.terminate()
        assert engines.wait(20) == 0
    finally:
        engines.kill()


def test_it_says_what_callers_waited_for_and_what_was_cached() -> None:
    words = ["--seconds", "3", "--rate", "8", "--ratios", "90", "--only", "round robin", "least loaded"]
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.bench.routing", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cells = re.findall(r"(\d+) / (\d+), (\d+)%, ([\d.]+)", done.stdout)
    assert len(cells) == 2
    for p50, p99, _, per_s in cells:
        # An engine reads no prompt faster than its rate, and only a tenth of a prompt is read at best.
        assert 50 <= int(p50) <= int(p99)
        assert 1 < float(per_s) < 20
