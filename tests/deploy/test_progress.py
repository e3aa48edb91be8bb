"""What a person sees: lines that stay, failures with a reason and a remedy."""

import io
from pathlib import Path

import pytest

from deploy.local.progress import Progress, StepFailed, last_words


def test_steps_are_numbered_and_leave_one_line_each() -> None:
    out = io.StringIO()
    progress = Progress(2, out)
    with progress.step("first") as step:
        step.note("something")
        step.result = "done"
    with progress.step("second"):
        pass
    first, second = out.getvalue().splitlines()
    assert first.startswith("[ 1/2] first")
    assert first.endswith("done")
    assert second.startswith("[ 2/2] second")


def test_a_failure_says_which_step_why_what_to_do_and_where_the_log_is() -> None:
    out = io.StringIO()
    failure = StepFailed("the disk\nis full", "Make room.", Path("/x/y.log"))
    with pytest.raises(StepFailed), Progress(1, out).step("writing"):
        raise failure
    text = out.getvalue()
    assert "[ 1/1] writing" in text
    assert "FAILED" in text
    assert "why:  the disk is full" in text
    assert "do:   Make room." in text
    assert "log:  /x/y.log" in text


def test_last_words_of_a_log_are_one_line(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("a\n\nb\n c \nd\n")
    assert last_words(log) == "b | c | d"
    assert last_words(tmp_path / "none.log") == ""
