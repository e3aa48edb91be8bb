"""`taas audit` as a person and as a cron job see it."""

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from billing.findings import FindingKind
from deploy.cli.audit import audit
from tests.deploy.cli.conftest import Taas
from tests.fixtures.engine import EngineMaker, SimEngine

_LOOKED_AT = {
    FindingKind.RECONCILED, FindingKind.NO_COUNTERS, FindingKind.COUNTER_LOST, FindingKind.UNPRICED,
    FindingKind.QUARANTINED, FindingKind.UNREACHABLE, FindingKind.UNREADABLE, FindingKind.NOT_DRAINED,
    FindingKind.USAGE_REJECTED, FindingKind.USAGE_CONFLICT, FindingKind.NOT_FOR_SALE,
    FindingKind.CLOCKS_DIFFER,
}  # fmt: skip
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


@pytest.mark.parametrize("kind", FindingKind)
def test_what_is_wrong_ends_with_1_and_what_is_only_to_be_looked_at_does_not(
    kind: FindingKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind is told apart here: a new one has to be."""
    report = {"instances": [], "residual_tokens": 0, "checked": "all",
              "findings": [{"kind": kind.value, "message": "of it"}]}  # fmt: skip
    monkeypatch.setattr("deploy.cli.audit.call", lambda *_, **__: report)
    done = CliRunner().invoke(audit, [])
    assert kind.value in done.stdout
    assert done.exit_code == (0 if kind in _LOOKED_AT else 1)
