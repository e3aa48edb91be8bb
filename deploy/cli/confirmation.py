"""Asking before something is done that is not easily undone. Nobody is asked where nobody can answer: then
it takes `--yes`.
"""

import sys
from collections.abc import Callable
from typing import Any

import click

yes_option: Callable[..., Any] = click.option("--yes", "-y", is_flag=True, help="Do not confirm.")


def require_answerable(*, yes: bool, as_json: bool) -> None:
    """Raises UsageError where it would have to confirm and cannot."""
    if not yes and (as_json or not sys.stdin.isatty()):
        raise click.UsageError("this asks before it is done, and nobody can answer here: give --yes.")


def confirm(question: str, *, yes: bool) -> None:
    """Raises Abort for a no."""
    if not yes:
        click.confirm(f"\n{question}", abort=True)
