"""Promises of the OS user of a private model: its own, the same each time, and closed to all others. As root,
because only root gives a process another user.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.private_user import NUMBERS, NoPrivateUser, PrivateUser, find_user, make_folders

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a process another user")
# One that any user can run; ours may be in root's home.
PYTHON = Path("/usr/bin/python3")


@pytest.fixture
def home(open_folder: Path) -> Path:
    return open_folder / "home"


def user_of(model: str, home: Path) -> PrivateUser:
    return find_user(model, home, home.parent / "users")


def run(user: PrivateUser, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=user.folder,
        user=user.number,
        group=user.number,
        extra_groups=(),
    )


@as_root
def test_each_private_model_has_a_number_of_its_own_and_keeps_it(home: Path) -> None:
    names = [f"model-{number}" for number in range(40)] + ["acme", "acme/chat", "acme-chat"]
    first = {name: user_of(name, home) for name in names}
    assert len({user.number for user in first.values()}) == len(names)
    assert all(user.number in NUMBERS and user.own for user in first.values())
    assert {name: user_of(name, home) for name in reversed(names)} == first


@as_root
def test_two_homes_of_a_machine_share_no_number(home: Path) -> None:
    one, other = (find_user("m", home / each, home / "users") for each in ("one", "other"))
    assert one.number != other.number


@as_root
def test_a_number_that_runs_something_is_passed_over(home: Path) -> None:
    number = user_of("m", home).number
    (home.parent / "users" / str(number)).unlink()
    with subprocess.Popen(["/bin/sleep", "60"], user=number, group=number, extra_groups=()) as running:
        assert user_of("m", home).number != number
        running.kill()


@as_root
def test_when_all_numbers_are_taken_it_says_what_to_do(home: Path) -> None:
    users = home.parent / "users"
    users.mkdir()
    for number in NUMBERS:
        (users / str(number)).symlink_to("/elsewhere")
    with pytest.raises(NoPrivateUser, match=r"Remove from .*/users the links"):
        user_of("m", home)


@as_root
def test_one_private_models_process_cannot_read_what_is_anothers(home: Path) -> None:
    mine, theirs = user_of("mine", home), user_of("theirs", home)
    for user in (mine, theirs):
        make_folders(user, PYTHON, ())
        assert run(user, "/bin/sh", "-c", "umask 0; echo secret > cache/kept").returncode == 0
    assert run(mine, "/bin/cat", str(mine.folder / "cache" / "kept")).stdout == "secret\n"
    for command in (
        ("/bin/cat", str(theirs.folder / "cache" / "kept")),
        ("/bin/ls", str(theirs.folder)),
        ("/bin/sh", "-c", f"cd {theirs.folder}"),
        ("/bin/sh", "-c", f"echo x > {theirs.folder}/x"),
        ("/bin/chmod", "755", str(theirs.folder)),
        ("/bin/mv", str(theirs.folder), str(mine.folder / "taken")),
    ):
        failed = run(mine, *command)
        assert failed.returncode != 0, command
        assert "secret" not in failed.stdout


@as_root
def test_one_private_models_process_cannot_see_into_anothers_process(home: Path) -> None:
    mine, theirs = user_of("mine", home), user_of("theirs", home)
    with subprocess.Popen(
        ["/bin/sleep", "60"],
        env={"VLLM_API_KEY": "engine-key"},
        user=theirs.number,
        group=theirs.number,
        extra_groups=(),
    ) as running:
        environ = f"/proc/{running.pid}/environ"
        assert "engine-key" in Path(environ).read_text()
        assert run(mine, "/bin/cat", environ).returncode != 0
        assert run(mine, "/bin/sh", "-c", f"kill -9 {running.pid}").returncode != 0
        assert running.poll() is None
        running.kill()


@as_root
def test_its_processes_have_no_other_group(home: Path) -> None:
    user = user_of("m", home)
    assert run(user, "/usr/bin/id", "-G").stdout.split() == [str(user.number)]


@as_root
def test_root_follows_no_link_that_an_engine_has_left(home: Path) -> None:
    user, victim = user_of("m", home), home / "victim"
    victim.mkdir(mode=0o755)
    run(user, "/bin/ln", "-s", str(victim), "cache")
    make_folders(user, PYTHON, ())
    assert user_of("m", home) == user
    assert (victim.stat().st_uid, victim.stat().st_mode & 0o777) == (0, 0o755)


@as_root
def test_a_folder_of_another_user_is_emptied_before_it_is_given_away(home: Path) -> None:
    user = user_of("m", home)
    run(user, "/bin/sh", "-c", "echo secret > kept")
    os.chown(user.folder, 1, 1)
    again = user_of("m", home)
    assert [*again.folder.iterdir()] == []
    assert again.folder.stat().st_uid == user.number
    assert again.folder.stat().st_mode & 0o777 == 0o700


@as_root
def test_weights_for_this_user_alone_are_read_and_not_written(home: Path) -> None:
    user, other = user_of("m", home), user_of("other", home)
    weights = home / "weights"
    weights.mkdir(mode=0o750)
    file = weights / "model.safetensors"
    file.write_text("weights")
    file.chmod(0o640)
    with pytest.raises(NoPrivateUser, match=f"chgrp -R {user.number} {weights}; chmod -R g"):
        make_folders(user, PYTHON, (weights,))
    subprocess.run(["/bin/chgrp", "-R", str(user.number), str(weights)], check=True)
    make_folders(user, PYTHON, (weights,))
    assert run(user, "/bin/sh", "-c", f"echo x > {file}").returncode != 0
    with pytest.raises(NoPrivateUser):
        make_folders(other, PYTHON, (weights,))


@as_root
def test_a_python_behind_a_closed_folder_is_said_with_that_folder(home: Path) -> None:
    closed = home / "closed"
    closed.mkdir(parents=True, mode=0o700)
    python = closed / "python"
    python.symlink_to(PYTHON)
    (closed / "python3").write_bytes(b"#!/bin/sh\n")
    with pytest.raises(NoPrivateUser, match=f"chmod o[+]x {closed}"):
        make_folders(user_of("m", home), closed / "python3", ())


def test_what_an_engine_writes_by_itself_is_in_its_folder(home: Path) -> None:
    user = user_of("m", home)
    make_folders(user, PYTHON, ())
    paths = {name: value for name, value in user.environment.items() if name not in {"USER", "LOGNAME"}}
    assert paths.pop("VLLM_RPC_BASE_PATH") == "tmp"
    assert all(Path(value).is_relative_to(user.folder) for value in paths.values())
    code = "import os, pathlib, tempfile; print(tempfile.gettempdir(), pathlib.Path.home())"
    shown = subprocess.run(
        [str(PYTHON), "-c", code], env=user.environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == [str(user.folder / "tmp"), str(user.folder)]


def test_without_root_there_is_a_folder_and_no_user_of_its_own(home: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; os.getuid() or os.setuid(12345);"
        "from serving.private_user import find_user, make_folders; home = Path(sys.argv[1]);"
        "user = find_user('m', home, home / 'users'); make_folders(user, Path('/usr/bin/python3'), ());"
        "print(user.own, user.number == os.geteuid(), oct(user.folder.stat().st_mode))"
    )
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    # Imported before it becomes another user: our Python may be in root's home.
    shown = subprocess.run(
        [sys.executable, "-c", "import serving.private_user, serving.vllm_command;" + code, str(home)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.stdout.split() == ["False", "True", "0o40700"], shown.stderr
