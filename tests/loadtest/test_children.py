"""What a benchmark or a scenario started is gone when it is told to stop."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from loadtest.children import free_port


def started(parent: psutil.Process, name: str) -> list[psutil.Process]:
    """Everything below the process, once one of the name is there."""
    deadline = time.monotonic() + 60
    while True:
        below: list[psutil.Process] = parent.children(recursive=True)
        if any(name in child.name() for child in below):
            return below
        assert parent.is_running()
        assert parent.status() != psutil.STATUS_ZOMBIE
        assert time.monotonic() < deadline, below
        time.sleep(0.05)


@pytest.mark.parametrize(
    "command", [("loadtest.scenarios", "enforcement"), ("loadtest.bench",)], ids=lambda words: words[0]
)
def test_sigterm_leaves_nothing_running(command: tuple[str, ...]) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    below = started(psutil.Process(run.pid), "valkey")
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(below, timeout=10)
    for child in alive:
        child.kill()
    assert not alive


def test_nobody_is_given_the_port_of_another() -> None:
    ask = (
        "from loadtest.children import free_port; print(*(free_port() for _ in range(500)), flush=True); "
        "input()"
    )
    others = [
        subprocess.Popen(
            [sys.executable, "-c", ask], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    # Drawn blindly from some 28,000, dozens of 1,500 would come twice.
    given = [free_port() for _ in range(500)]
    for other in others:
        assert other.stdout is not None
        given += [int(port) for port in other.stdout.readline().split()]
    for other in others:
        other.communicate("\n", timeout=60)
    assert len(given) == 1_500
    assert len(set(given)) == len(given)


def test_sigterm_in_a_finalizer_ends_the_process_too() -> None:
    """What is raised there is dropped by Python, so it has to be raised again."""
    program = """
import os, signal, time
from loadtest.children import stop_children_on_sigterm
class Ended:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
stop_children_on_sigterm()
Ended()
time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=50)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
