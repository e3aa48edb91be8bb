"""Confirmation before something that is not easily undone. Where nobody can answer, it needs `--yes`."""

import sys
from collections.abc import Callable
from typing import Any

import click

yes_option: Callable[..., Any] = click.option(
    "--yes", "-y", is_flag=True, help="Do not ask for confirmation."
)


def require_answerable(*, yes: bool, as_json: bool) -> None:
    """Raises UsageError if it would have to ask for confirmation and cannot."""
    if not yes and (as_json or not sys.stdin.isatty()):
        raise click.UsageError("this asks for confirmation, and nobody can answer here: give --yes.")


def confirm(question: str, *, yes: bool) -> None:
    """Ask for confirmation. Raises Abort if it is denied."""
    if not yes:
        click.confirm(f"\n{question}", abort=True)
