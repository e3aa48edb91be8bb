"""`--why`: the reason of a change, for the audit log. Every command that may change something takes it."""

from typing import Final

import click

_KEPT: Final = f"{__name__}.reason"
# Commands that only read.
_READING: Final = frozenset({
    "list", "show", "history", "usage", "quote", "export", "plan", "audit", "economics",
    "evidence", "audit-log",
})  # fmt: skip


def _keep(context: click.Context, option: click.Parameter, given: str | None) -> None:
    context.meta[_KEPT] = given


def offer(command: click.Command) -> click.Command:
    """The command; it and all below it take `--why`, unless they only read."""
    if command.name in _READING:
        return command
    if isinstance(command, click.Group):
        for each in command.commands.values():
            offer(each)
    elif all(option.name != "why" for option in command.params):
        said = "Why, for the audit log."
        option = click.Option(["--why"], metavar="REASON", expose_value=False, callback=_keep, help=said)
        command.params.append(option)
    return command


def reason() -> str | None:
    """What was given to the command that runs."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(_KEPT)
