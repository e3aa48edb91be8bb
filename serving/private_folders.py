"""Run as the OS user of a private model, before its engine: makes the folders inside its own, and tries to
read what the engine has to read. It uses the standard library only and runs as a script.

Root makes nothing in there: the engine could have put a link in the way.

Usage: private_folders.py FOLDER NEEDED… Exit status 1 and one line on stdout, `PATH: why`, for the first path
that this user cannot use.
"""

import os
import sys

_INSIDE = ("cache", "config", "data", "tmp")


def main(folder: str, needed: list[str]) -> int:
    """Exit status."""
    try:
        for name in _INSIDE:
            os.makedirs(os.path.join(folder, name), mode=0o700, exist_ok=True)
        for path in needed:
            _read(path)
    except OSError as exc:
        print(f"{exc.filename}: {exc.strerror}")
        return 1
    return 0


def _read(path: str) -> None:
    """Raises OSError."""
    if os.path.isdir(path):
        for name in os.listdir(path):
            _read(os.path.join(path, name))
    else:
        with open(path, "rb") as file:
            file.read(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
