"""`taas calibrate` on real vLLM: it finds figures that predict a mix it has not seen, and every token that
it cost is accounted for.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.stack import ADMIN_KEY, INSTANCE, MODEL, Stack

pytestmark = pytest.mark.vllm


@pytest.fixture
def small_context(stack: Stack) -> Iterator[None]:
    """Prompts are as long as a quarter of the context: a quarter as long as in the model's own, and so a
    quarter of the work. In neither is there time for the prompts of half the context.
    """
    (before,) = [each for each in stack.admin("GET", "models")["data"] if each["name"] == MODEL]
    stack.taas("model", "set", MODEL, "--context", "512")
    yield
    stack.taas("model", "set", MODEL, "--context", str(before["context_tokens"]))


def test_real_vllm_is_measured_and_its_tokens_are_accounted_for(stack: Stack, small_context: None) -> None:
    stack.await_rest()
    given = {
        "TAAS_ADMIN_URL": stack.admin_url,
        "TAAS_ADMIN_KEY": ADMIN_KEY,
        "TAAS_REDIS_URL": stack.valkey.url,
    }
    # A latency that two cores keep with a few sequences at once.
    words = (
        "calibrate",
        MODEL,
        "--yes",
        "--json",
        "--tpot-ms",
        "80",
        "--ttft-ms",
        "5000",
        "--seconds-per-step",
        "0.5",
    )
    command = [str(Path(sys.executable).with_name("taas")), *words]
    run = subprocess.run(
        command, env={**os.environ, **given}, capture_output=True, text=True, check=False, timeout=500
    )
    # On a machine that does other things as well the mixes may not agree. Then nothing is stored, and what it
    # cost is absorbed all the same.
    if run.returncode != 0:
        assert "nothing was stored" in run.stderr, run.stderr
        assert json.loads(stack.taas("pool", "show", MODEL, "--json"))["units_per_instance"] is None
        stack.assert_conserved()
        return
    found = json.loads(run.stdout)
    assert found["instance"] == INSTANCE
    assert found["sequences"] >= 1
    # Input of this small model is so cheap to compute that the difference may be lost in what else runs.
    assert found["weights"]["w_cached_mu"] <= found["weights"]["w_in_mu"] < found["weights"]["w_out_mu"]
    assert json.loads(stack.taas("pool", "show", MODEL, "--json"))["units_per_instance"] is not None
    stack.assert_conserved()
