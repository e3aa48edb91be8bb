"""Detached processes: they outlive whoever starts them, are known for certain, and end when told."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.processes import Processes
from deploy.local.progress import StepFailed
from deploy.local.settings import HOME_MARK
from tests.deploy.conftest import Home

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", deaf])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    for name in ("one", "other"):
        made.stop(name, 0.1)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return dict(os.environ) | {HOME_MARK: str(tmp_path)}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in 10 s"
        time.sleep(0.02)


def test_a_process_outlives_its_starter(home: Home) -> None:
    program = f"""
import os
from pathlib import Path
from deploy.local.processes import Processes
Processes(Path({str(home.folder)!r})).start("one", {SLEEP!r}, os.environ, Path("/"))
"""
    home.python(program)
    processes = Processes(home.folder)
    running = processes.find("one")
    assert running is not None
    assert os.getsid(running.pid) == running.pid, "it must have a session of its own"
    assert processes.stop("one", 5)
    assert processes.find("one") is None


def test_a_pid_given_to_another_program_is_not_taken_for_ours(
    processes: Processes, environment: dict[str, str], tmp_path: Path
) -> None:
    running = processes.start("one", SLEEP, environment, tmp_path)
    path = tmp_path / "run" / "one.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started_ticks": running.started_ticks - 1}))
    assert processes.find("one") is None
    assert not processes.stop("one", 0.1)
    assert running.is_alive(), "another program's process must not be stopped"
    os.kill(running.pid, 9)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_pid_file_means_that_nothing_runs(
    processes: Processes, tmp_path: Path, damage: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "one.json").write_text(damage)
    assert processes.find("one") is None


def test_stop_ends_a_process_that_ignores_it_and_its_children(
    processes: Processes, environment: dict[str, str], tmp_path: Path
) -> None:
    running = processes.start("one", [sys.executable, "-c", STUBBORN], environment, tmp_path)
    until(lambda: processes.log_of("one").read_text().strip().isdigit())
    child = int(processes.log_of("one").read_text())
    assert processes.stop("one", 0.3)
    assert not running.is_alive()
    until(lambda: not Path(f"/proc/{child}").exists() or ") Z " in Path(f"/proc/{child}/stat").read_text())


def test_what_is_left_of_a_home_is_found_and_ended(
    processes: Processes, environment: dict[str, str], tmp_path: Path
) -> None:
    running = processes.start("one", SLEEP, environment, tmp_path)
    (tmp_path / "run" / "one.json").unlink()
    other = processes.start("other", SLEEP, dict(os.environ), Path("/"))
    assert [process.pid for process in processes.leftovers()] == [running.pid]
    assert len(processes.end_leftovers()) == 1
    assert not running.is_alive()
    assert other.is_alive(), "a process of another home is left alone"


def test_a_program_that_reads_a_log_is_not_ended(processes: Processes, tmp_path: Path) -> None:
    processes.start("one", ["tail", "-f", str(processes.log_of("one"))], dict(os.environ), Path("/"))
    assert processes.leftovers() == []


def test_a_process_with_other_settings_is_not_the_one_asked_for(
    processes: Processes, environment: dict[str, str], tmp_path: Path
) -> None:
    processes.start("one", SLEEP, environment | {"TAAS_X": "1"}, tmp_path)
    assert processes.find_as("one", SLEEP, environment | {"TAAS_X": "1", "LANG": "C"}) is not None
    assert processes.find_as("one", SLEEP, environment | {"TAAS_X": "2"}) is None


def test_a_process_that_dies_at_start_says_why(
    processes: Processes, environment: dict[str, str], tmp_path: Path
) -> None:
    running = processes.start(
        "one", [sys.executable, "-c", "import sys; sys.exit('no more room')"], environment, tmp_path
    )
    with pytest.raises(StepFailed, match="no more room") as failure:
        processes.wait_until(running, lambda: False, 20)
    assert failure.value.log == processes.log_of("one")


def test_a_process_that_never_answers_is_given_up(
    processes: Processes, environment: dict[str, str], tmp_path: Path
) -> None:
    running = processes.start("one", SLEEP, environment, tmp_path)
    with pytest.raises(StepFailed, match="does not answer"):
        processes.wait_until(running, lambda: False, 0.2)
