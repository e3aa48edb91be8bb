"""A key in a file: it stands in no command line and in no history of a shell."""

from pathlib import Path
from typing import Final

import click

from billing.wire.private_file import NotPrivate, read_private_file

KEY_CHARS_MAX: Final = 2048


def read_key_file(path: Path) -> str:
    """The key, without the white space around it. Raises ClickException, which never contains the key, if the
    file is not regular, others may read it, or it holds no key.
    """
    try:
        # White space around the key may double it; more than that is no key.
        raw = read_private_file(path, 2 * KEY_CHARS_MAX + 1).strip()
    except NotPrivate as exc:
        raise click.ClickException(str(exc)) from exc
    if not raw:
        raise click.ClickException(f"{path} is empty: it must hold the key and nothing else")
    if len(raw) > KEY_CHARS_MAX or not all(0x21 <= byte <= 0x7E for byte in raw):
        raise click.ClickException(
            f"{path} holds no key: a key is one word of at most {KEY_CHARS_MAX} printable ASCII characters"
        )
    return raw.decode("ascii")
