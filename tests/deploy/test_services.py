"""What the processes of `up` are started with."""

from typing import Any, cast

import pytest

from deploy.local import services
from deploy.local.credentials import of
from deploy.local.processes import Processes, Running
from deploy.local.progress import Step
from deploy.local.services import POOLING, WORKER, Services, Stores
from deploy.local.settings import LocalSettings
from tests.deploy.conftest import Home


class Started:
    """Processes that are written down instead of started."""

    def __init__(self) -> None:
        self.memory: dict[str, float] = {}

    def find_as(self, *_: Any) -> None:
        return None

    def stop(self, *_: Any) -> bool:
        return False

    def start(self, name: str, _command: list[str], environment: dict[str, str], *_: Any) -> Running:
        self.memory[name] = float(environment["TAAS_GPU_MEMORY_UTILIZATION"])
        return cast("Running", None)


@pytest.mark.parametrize("pooling", [True, False])
def test_two_engines_share_the_memory_of_one_gpu(
    home: Home, monkeypatch: pytest.MonkeyPatch, pooling: bool
) -> None:
    monkeypatch.setattr(services, "needs_pooling", lambda *_: pooling)
    settings = LocalSettings(home=home.folder, vllm="gpu", gpu_memory_utilization=0.8)
    started = Started()
    Services(settings, of(settings), cast("Processes", started)).start_workers(
        Stores("redis://127.0.0.1:1/0", "postgresql:///none"), {"name": "m"}, Step()
    )
    assert set(started.memory) == ({WORKER, POOLING} if pooling else {WORKER})
    assert sum(started.memory.values()) == pytest.approx(0.8)
