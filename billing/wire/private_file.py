"""Reads a file with a secret, which nobody but its owner may use."""

import os
import stat
from pathlib import Path


class NotPrivate(Exception):
    """It cannot be read, is not a regular file, or others may use it. The message names the file, and never
    what it holds.
    """


def read_private_file(path: Path, bytes_max: int) -> bytes:
    """What the file holds, cut off after `bytes_max`. Raises NotPrivate."""
    try:
        # Without waiting: a pipe that nobody writes to is refused and not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise NotPrivate(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotPrivate(f"{path} is not a regular file")
        mode = stat.S_IMODE(status.st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise NotPrivate(
                f"{path} has mode {mode:04o}, so others than its owner may use it: `chmod 600 {path}`"
            )
        return os.read(descriptor, bytes_max)
    finally:
        os.close(descriptor)
