"""Makes steps true, one after the other. What it has done stays done: the file can be applied again."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from deploy.cli.connection import AdminApiError, call
from deploy.cli.key_file import read_key_file
from deploy.desired.step import Call, Step

_POLL_S: Final = 0.5
# For so long billing shows a removed instance, and reads its counters.
_DRAIN_S: Final = 600.0

Keys = dict[str, str]


def read_keys(found: Sequence[Step]) -> Keys:
    """What is in the key files, by the instance that is added: before anything is changed. Raises
    ClickException.
    """
    keys = {}
    for step in found:
        for each in step.calls:
            if each.key_file is not None:
                try:
                    keys[step.name] = read_key_file(each.key_file)
                except click.ClickException as exc:
                    raise click.ClickException(f"{step.place}: {exc.message}") from exc
    return keys


def carry_out(found: Sequence[Step], keys: Keys, told: Callable[[Step], None]) -> None:
    """Calls `told` after each step. Raises ClickException, saying what was done and what was not."""
    for number, step in enumerate(found):
        try:
            for each in step.calls:
                _call(each, keys.get(step.name))
        except click.ClickException as exc:
            where = "" if step.place is None else f"{step.place}: "
            left = [f"{each.what} {each.name}" for each in found[number:]]
            raise click.ClickException(
                f"{where}{step.action} of {step.what} {step.name}: {exc.message}\n{number} of {len(found)} "
                f"changes are made; not made: {', '.join(left)}. Mend it and apply the file again."
            ) from exc
        told(step)


def _call(wanted: Call, key: str | None) -> dict[str, Any]:
    body = wanted.body
    if body is not None and wanted.key_file is not None:
        body = {**body, "key": key}
    until = time.monotonic() + _DRAIN_S
    while True:
        answer = call(wanted.method, *wanted.path, body=body)
        if not wanted.drains or answer["open_requests"] == 0:
            return answer
        if time.monotonic() > until:
            raise AdminApiError(f"requests still run there after {_DRAIN_S:.0f} s")
        time.sleep(_POLL_S)
