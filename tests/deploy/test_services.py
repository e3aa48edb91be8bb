"""What the processes of `up` are started with."""

from typing import Any, cast

import pytest

from billing.api.signing_key import signing_key
from billing.invoices.close import require_issuer
from billing.settings import BillingSettings
from deploy.local import services
from deploy.local.credentials import of
from deploy.local.processes import Processes, Running
from deploy.local.progress import Step
from deploy.local.services import BILLING, POOLING, WORKER, Services, Stores
from deploy.local.settings import LocalSettings
from tests.deploy.conftest import Home


class Started:
    """Processes that are written down instead of started."""

    def __init__(self) -> None:
        self.environments: dict[str, dict[str, str]] = {}

    def find_as(self, *_: Any) -> None:
        return None

    def stop(self, *_: Any) -> bool:
        return False

    def start(self, name: str, _command: list[str], environment: dict[str, str], *_: Any) -> Running:
        self.environments[name] = environment
        return cast("Running", None)

    def wait_until(self, *_: Any) -> None:
        return None


NOWHERE = Stores("redis://127.0.0.1:1/0", "postgresql:///none")


@pytest.mark.parametrize("pooling", [True, False])
def test_two_engines_share_the_memory_of_one_gpu(
    home: Home, monkeypatch: pytest.MonkeyPatch, pooling: bool
) -> None:
    monkeypatch.setattr(services, "needs_pooling", lambda *_: pooling)
    settings = LocalSettings(home=home.folder, vllm="gpu", gpu_memory_utilization=0.8)
    started = Started()
    Services(settings, of(settings), cast("Processes", started)).start_workers(NOWHERE, {"name": "m"}, Step())
    assert set(started.environments) == ({WORKER, POOLING} if pooling else {WORKER})
    memory = [float(each["TAAS_GPU_MEMORY_UTILIZATION"]) for each in started.environments.values()]
    assert sum(memory) == pytest.approx(0.8)


@pytest.mark.parametrize(("given", "issuer"), [("", "local taas"), ("Lab Ltd", "Lab Ltd")])
def test_billing_can_issue_invoices(
    home: Home, monkeypatch: pytest.MonkeyPatch, given: str, issuer: str
) -> None:
    """It has what closing a period is refused without."""
    for name, value in (home.environment | {"TAAS_ISSUER": given}).items():
        monkeypatch.setenv(name, value)
    settings = LocalSettings()
    started = Started()
    Services(settings, of(settings), cast("Processes", started)).start_billing(NOWHERE, Step())
    for name, value in started.environments[BILLING].items():
        monkeypatch.setenv(name, value)
    billing = BillingSettings()
    assert require_issuer(billing.issuer) == issuer
    assert signing_key(billing.evidence_key_file)
