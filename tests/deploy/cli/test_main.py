"""The command as a whole: complete help, quick to start, and processes that get their own arguments."""

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from deploy.cli.main import main
from tests.deploy.cli.conftest import run

# What only some command needs, and takes long to import.
HEAVY = (
    "httpx",
    "rich",
    "pydantic",
    "pydantic_settings",
    "fastapi",
    "sqlalchemy",
    "redis",
    "billing.api",
    "billing.schema",
    "gateway",
    "serving",
)


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_every_command_and_option_says_what_it_is_for():
    for path, command in commands(main):
        assert command.help, path
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, (path, option.name)


def test_every_command_of_a_noun_can_print_json():
    for path, command in commands(main):
        if not isinstance(command, click.Group) and (
            len(path) == 2 or path[0] in {"usage", "audit", "status"}
        ):
            assert "as_json" in {option.name for option in command.params}, path


def test_help_loads_nothing_heavy():
    loaded = (
        "import sys; from deploy.cli.main import main; main(['--help'], standalone_mode=False); "
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("process", ["gateway", "worker"])
def test_a_process_explains_its_own_arguments(process: str):
    assert f"Usage: taas {process}" in run(process, "--help").output


def test_an_argument_that_a_process_does_not_know_is_wrong_usage():
    assert "No such option" in run("worker", "--nonsense", exit_code=2).output


def test_version_is_told():
    assert run("--version").output.startswith("taas, version ")
