"""The list of a model's files that its worker was told to expect, in the form of `sha256sum`. Pure, but for
reading the list.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_LIST_BYTES_MAX: Final = 4 * 1024 * 1024
_LINE: Final = re.compile(r"(?P<digest>[0-9a-fA-F]{64}) [ *](\./)?(?P<name>.+)", re.ASCII)
_NAMED_MOST: Final = 3


class BadList(ValueError):
    """Not such a list. The text says what is wrong."""


def read_list(path: Path) -> dict[str, str]:
    """SHA-256 by file name below the model's folder. Raises BadList."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LIST_BYTES_MAX + 1)
    except OSError as exc:
        raise BadList(f"{path} cannot be read: {exc.strerror}") from exc
    if len(raw) > _LIST_BYTES_MAX:
        raise BadList(f"{path} has more than {_LIST_BYTES_MAX} bytes")
    found: dict[str, str] = {}
    for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise BadList(f"line {number} of {path} is not `SHA256  FILE`, as `sha256sum` writes it")
        found[match["name"]] = match["digest"].lower()
    if not found:
        raise BadList(f"{path} lists no file")
    return found


def what_differs(expected: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """The files that differ, are missing or are not listed, at most three by name; None if there are none."""
    wrong = [
        f"{name} is missing" if name not in found
        else f"{name} is not in the list" if name not in expected
        else f"{name} has SHA-256 {found[name]}, not {expected[name]}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]  # fmt: skip
    if not wrong:
        return None
    more = len(wrong) - _NAMED_MOST
    return "; ".join(wrong[:_NAMED_MOST]) + (f"; and {more} more" if more > 0 else "")
