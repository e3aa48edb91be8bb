"""The log of an engine: where it is, how long it may get, and which of its lines explain a failed start. It
knows no process.
"""

import itertools
import re
from pathlib import Path
from typing import Final

LOG_BYTES_MAX: Final = 20 * 1024 * 1024
_TAIL_BYTES: Final = 128 * 1024
_TELLING_LINES_MAX: Final = 8
_LINE_CHARS_MAX: Final = 400
_PREFIX: Final = re.compile(
    r"^(\([\w:]+ pid=\d+\) )?((INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[[^\]]*\] "
    r"?|(INFO|WARNING|ERROR|CRITICAL): +)?"
)
# The last line of a traceback ("package.SomeError: why"), and what argparse and the kernel say.
_TELLING: Final = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b(: ?\S|$)|: error: |^Killed")
# Errors that only say that another process has failed.
_SECOND_HAND: Final = re.compile(r"See root cause|See stack trace for root cause")


def rotate(path: Path) -> None:
    """Before a start: a log above the limit becomes `….1`, and the old `….1` is deleted. Only the worker's
    user may read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_name(path.name + ".1"))
    path.touch(mode=0o600)
    path.chmod(0o600)


def read_since(path: Path, offset: int) -> str:
    """What was written after `offset`, at most its last 128 KiB; empty if the log was deleted, since it only
    explains.
    """
    try:
        with path.open("rb") as log:
            end = log.seek(0, 2)
            log.seek(max(offset, end - _TAIL_BYTES, 0))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def telling_lines(text: str) -> list[str]:
    """The lines that explain why an engine did not start: those that end in an error, each with the line
    after it (pydantic's explanation), first cause first; without any, the last lines.
    """
    lines = [_message(line) for line in text.splitlines() if line.strip()]
    telling: list[str] = []
    for line, following in itertools.pairwise([*lines, ""]):
        if _TELLING.search(line) and not _SECOND_HAND.search(line):
            telling.append(line)
            if following.startswith("  ") and not following.lstrip().startswith("File "):
                telling.append(following)
    # The same error is logged by the engine core and by the server that waited for it.
    return list(dict.fromkeys(telling))[:_TELLING_LINES_MAX] or lines[-_TELLING_LINES_MAX:]


def last_message(text: str) -> str:
    """The newest line, without its prefix, for a progress line."""
    lines = [line for line in text.splitlines() if line.strip()]
    return _message(lines[-1])[:120].strip() if lines else ""


def _message(line: str) -> str:
    """Without `(EngineCore pid=1) ERROR 11-24 04:00:00 [core.py:1] `."""
    return _PREFIX.sub("", line.rstrip()[:_LINE_CHARS_MAX])
