"""What a person sees while steps run: which of how many, for how long, what it is doing; and how a failure is
told.

Standard library only: it runs before any environment exists.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

_REDRAW_S: Final = 0.2
# Without a terminal a line is final, so a long step speaks seldom.
_REPORT_S: Final = 15.0
_WIDTH: Final = 100


class StepFailed(Exception):
    """A step cannot be done: why, what to do about it, and where the whole output is."""

    def __init__(self, why: str, todo: str, log: Path | None = None) -> None:
        super().__init__(why)
        self.why = " ".join(why.split())
        self.todo = todo
        self.log = log
        self.told = False


class Step:
    """One running step; `note` says what it is doing now, `result` what to leave on its line."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.text = ""
        self.result = ""

    def note(self, text: str) -> None:
        """Replace what is shown behind the step's name."""
        self.text = " ".join(text.split())

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started


class Progress:
    """Numbered steps on one stream. In a terminal the running line is redrawn, elsewhere only final lines
    are written.
    """

    def __init__(self, total: int, out: TextIO | None = None) -> None:
        self._total = total
        self._number = 0
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first step."""
        return time.monotonic() - self._started

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Show `name` while the block runs. StepFailed is told on its line and raised on."""
        self._number += 1
        head = f"[{self._number:>2}/{self._total}] {name:<22}"
        step, over = Step(), threading.Event()
        drawing = threading.Thread(target=self._draw, args=(head, step, over), daemon=True)
        drawing.start()
        try:
            yield step
        except BaseException as exc:
            self._close(drawing, over, f"{head} FAILED after {step.elapsed_s:.1f} s")
            if isinstance(exc, StepFailed):
                tell_failure(exc, self._out)
            raise
        self._close(drawing, over, f"{head} {step.elapsed_s:>6.1f} s  {step.result}".rstrip())

    def say(self, text: str) -> None:
        """A line of its own between steps."""
        print(text, file=self._out, flush=True)

    def _close(self, drawing: threading.Thread, over: threading.Event, line: str) -> None:
        over.set()
        drawing.join()
        if self._terminal:
            self._out.write("\r\x1b[K")
        self.say(line)

    def _draw(self, head: str, step: Step, over: threading.Event) -> None:
        while not over.wait(_REDRAW_S if self._terminal else _REPORT_S):
            line = f"{head} {step.elapsed_s:>6.0f} s  {step.text}"[:_WIDTH]
            if self._terminal:
                self._out.write(f"\r\x1b[K{line}")
                self._out.flush()
            else:
                self.say(line + " …")


def tell_failure(failure: StepFailed, out: TextIO) -> None:
    """Why, what to do, and where the log is, under a failed step's line; once."""
    if failure.told:
        return
    failure.told = True
    print(f"        why:  {failure.why}\n        do:   {failure.todo}", file=out)
    if failure.log is not None:
        print(f"        log:  {failure.log}", file=out)
    out.flush()


def last_words(log: Path, lines: int = 3) -> str:
    """The last non-empty lines of a log, on one line, for a `why`."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])[-600:]
