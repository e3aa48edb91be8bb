"""A home of its own for each test: a short path, ports of its own, and nothing left running at the end."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local.credentials import read_env
from deploy.local.processes import Processes
from tests.fixtures.engine import SimEngine
from tests.fixtures.valkey import free_port
from tests.source_tree import ROOT

PORTS = (
    "VALKEY_PORT", "GATEWAY_PORT", "ADMIN_PORT", "GATEWAY_METRICS_PORT", "BILLING_METRICS_PORT", "BATCH_PORT",
    "BATCH_METRICS_PORT",
)  # fmt: skip


class Home:
    """One installation that a test brings up and down with the commands that people use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in PORTS}
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("TAAS_")}
        self.environment |= {f"TAAS_{name}": str(port) for name, port in self.ports.items()}
        self.environment["TAAS_HOME"] = str(folder)
        self.first_up: subprocess.CompletedProcess[str] | None = None

    def run(self, *command: str, timeout_s: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
        """`python -m deploy.local …`, its output captured."""
        return subprocess.run(
            [sys.executable, "-m", "deploy.local", *command], cwd=ROOT, env=self.environment | more,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def taas(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`taas …` for its admin API."""
        environment = self.environment | read_env(self.folder / "demo.env")
        return subprocess.run(
            [str(Path(sys.executable).with_name("taas")), *command], cwd=ROOT, env=environment,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def python(self, program: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A short program in a process that ends."""
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )

    def pids(self) -> dict[str, int]:
        """The processes that run, by name."""
        processes = Processes(self.folder)
        names = ("valkey", "billing", "gateway", "batch", "worker", "pooling")
        found = {name: processes.find(name) for name in names}
        return {name: running.pid for name, running in found.items() if running is not None}


@contextmanager
def new_home() -> Iterator[Home]:
    """Under /tmp itself, since the path of a Unix socket is short. In the end nothing of it runs."""
    folder = Path(tempfile.mkdtemp(prefix="taas-", dir="/tmp")).resolve()
    made = Home(folder)
    yield made
    if Processes(folder).leftovers():
        made.run("down")
    left = Processes(folder).leftovers()
    shutil.rmtree(folder, ignore_errors=True)
    assert not left


@pytest.fixture
def home() -> Iterator[Home]:
    """A home of the test's own; nothing runs in it yet."""
    with new_home() as made:
        yield made


@pytest.fixture(scope="module")
def running(engine_server: SimEngine) -> Iterator[Home]:
    """A home in which all of it runs, on the simulated engine. A test leaves it running. It takes seconds of
    CPU: mark `together` what asks for it.
    """
    with new_home() as made:
        made.environment |= {"TAAS_ENGINE_URL": engine_server.url, "TAAS_ENGINE_KEY": engine_server.key}
        run = made.first_up = made.run("up")
        assert run.returncode == 0, run.stdout + run.stderr
        yield made
