"""A key in a file: it stands in no command line and in no history of a shell."""

import os
import stat
from pathlib import Path
from typing import Final

import click

KEY_CHARS_MAX: Final = 2048


def read_key_file(path: Path) -> str:
    """The key, without the white space around it. Raises ClickException, which never contains the key, if the
    file is not regular, others may read it, or it holds no key.
    """
    try:
        # Without waiting: a pipe that nobody writes to is refused and not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise click.ClickException(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise click.ClickException(f"{path} is not a regular file")
        mode = stat.S_IMODE(status.st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise click.ClickException(
                f"{path} has mode {mode:04o}, so others than its owner may use it: `chmod 600 {path}`"
            )
        # White space around the key may double it; more than that is no key.
        raw = os.read(descriptor, 2 * KEY_CHARS_MAX + 1).strip()
    finally:
        os.close(descriptor)
    if not raw:
        raise click.ClickException(f"{path} is empty: it must hold the key and nothing else")
    if len(raw) > KEY_CHARS_MAX or not all(0x21 <= byte <= 0x7E for byte in raw):
        raise click.ClickException(
            f"{path} holds no key: a key is one word of at most {KEY_CHARS_MAX} printable ASCII characters"
        )
    return raw.decode("ascii")
