"""`taas audit` as a person and as a cron job see it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.deploy.cli.conftest import Taas
from tests.fixtures.engine import EngineMaker, SimEngine

CHAT = {
    "model": "sim",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 5,
    "ignore_eos": True,
}


@pytest.fixture
def added(taas: Taas, make_engine: EngineMaker) -> SimEngine:
    """An engine of the installation."""
    engine = make_engine("--decode-ms", "1")
    taas("model", "add", "sim", "--context", "2048")
    taas("instance", "add", "--model", "sim", "--url", engine.url, "--key", engine.key)
    return engine


def test_an_installation_in_balance_ends_with_0(taas: Taas, added: SimEngine) -> None:
    assert "residual: 0 tokens" in taas("audit").stdout


def test_tokens_that_nobody_accounts_for_are_named_and_end_with_1(
    taas: Taas, told: Callable[..., Any], added: SimEngine
) -> None:
    assert added.post("/v1/chat/completions", CHAT, x_request_id="req_unknown").status_code == 200
    shown = taas("audit", exit_code=1).stdout
    assert "request_unknown" in shown
    assert "req_unknown" in shown
    assert "residual: 0" not in shown
    assert taas("audit", "--json", exit_code=1).stdout.startswith("{")
