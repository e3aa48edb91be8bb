"""The load test as its user runs it: against a whole TAAS in front of a simulated engine, and refusing
what is not ours to load.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.own_stack import OwnStack, Served
from tests.fixtures.engine import SimEngine

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def slow_engine() -> Iterator[SimEngine]:
    server = SimEngine("--decode-ms", "3")
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def stack(slow_engine: SimEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnStack]:
    folder = tmp_path_factory.mktemp("stack")
    served = Served(slow_engine.model, slow_engine.url, 2048, slow_engine.key)
    stack = OwnStack(folder, [served], pinned=False)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


def loadtest(tmp_path: Path, *words: str, **environment: str) -> tuple[int, str, dict[str, Any]]:
    """(exit status, what was printed, the figures)."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TAAS_", "OPENAI_"))}
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "--json", str(figures), *words], capture_output=True, text=True,
        timeout=120, check=False, env=clean | {"TAAS_HOME": str(tmp_path)} | environment,
    )  # fmt: skip
    return (
        done.returncode,
        done.stdout + done.stderr,
        json.loads(figures.read_text()) if figures.exists() else {},
    )


def test_every_bill_of_a_mixed_load_agrees_with_what_was_received(
    stack: OwnStack, slow_engine: SimEngine, tmp_path: Path
) -> None:
    (tmp_path / "demo.env").write_text(
        f"OPENAI_BASE_URL={stack.base_url}\nOPENAI_API_KEY={stack.key}\nTAAS_MODEL={slow_engine.model}\n"
    )
    status, printed, figures = loadtest(tmp_path, "--rate", "30", "--duration", "4", "--disconnects", "0.3")
    assert status == 0, printed
    assert figures["tokens"]["disagreements"] == []
    assert figures["tokens"]["receipts"] == figures["calls"] > 60
    assert figures["endings"]["left"] > 5
    assert figures["endings"]["complete"] + figures["endings"]["left"] == figures["calls"]
    assert figures["ttft_ms"]["p99"] >= figures["ttft_ms"]["p50"] > 0
    assert figures["ms_per_token"]["p50"] >= 2
    assert figures["tokens"]["billed_output"] == sum(
        truth["output"] for truth in slow_engine.truth().values()
    )


def test_calls_do_not_wait_for_answers(stack: OwnStack, slow_engine: SimEngine, tmp_path: Path) -> None:
    target = ("--base-url", stack.base_url, "--api-key", stack.key, "--model", slow_engine.model)
    slow_engine.faults("slow_drip", 150, count=None)
    status, printed, figures = loadtest(
        tmp_path,
        *target,
        "--rate",
        "20",
        "--duration",
        "2",
        "--max-tokens",
        "24",
        "--streams",
        "15",
        "--disconnects",
        "0",
    )
    slow_engine.reset()
    assert status == 0, printed
    # Answers take up to 3.6 s: callers who waited would have made a few calls each. The cap is counted, not
    # hidden.
    assert figures["not_sent"] > 5
    assert figures["calls"] >= 15


def test_failures_are_told_by_kind_and_are_not_billed(
    stack: OwnStack, slow_engine: SimEngine, tmp_path: Path
) -> None:
    target = ("--base-url", stack.base_url, "--api-key", stack.key, "--model", slow_engine.model)
    slow_engine.faults("die_after_tokens", 3, count=4)  # one more in a row would take it out of rotation
    status, printed, figures = loadtest(
        tmp_path, *target, "--rate", "20", "--duration", "2", "--disconnects", "0"
    )
    assert status == 0, printed
    assert figures["endings"]["error"] > 0
    assert figures["endings"]["broken"] == 0
    assert sum(figures["failures"].values()) == figures["endings"]["error"]
    assert figures["tokens"]["absorbed_output"] == 3 * figures["endings"]["error"]


def test_refusals_are_told_by_code_and_a_load_of_which_nothing_was_served_fails(
    stack: OwnStack, tmp_path: Path
) -> None:
    target = ("--base-url", stack.base_url, "--api-key", stack.key, "--model", "no-such-model")
    status, printed, figures = loadtest(tmp_path, *target, "--rate", "20", "--duration", "1")
    assert (status, set(figures["refusals"])) == (1, {"404 model_not_found", "404 not_found_error"}), printed


def test_a_server_without_receipts_can_be_loaded(engine: SimEngine, tmp_path: Path) -> None:
    target = ("--base-url", f"{engine.url}/v1", "--api-key", engine.key, "--model", engine.model)
    status, printed, figures = loadtest(tmp_path, *target, "--rate", "20", "--duration", "1", "--no-receipts")
    assert (status, "tokens" in figures) == (0, False), printed


def test_no_load_is_sent_to_other_machines(tmp_path: Path) -> None:
    target = ("--api-key", "sk-x", "--model", "m", "--base-url", "http://192.0.2.1:8000/v1")
    status, printed, figures = loadtest(tmp_path, *target)
    assert (status, figures) == (2, {})
    assert "--i-own-this-host" in printed


def test_without_a_target_it_says_what_to_do(tmp_path: Path) -> None:
    status, printed, _ = loadtest(tmp_path)
    assert status == 2
    assert "make up" in printed
