"""A small run of what `python -m loadtest.batch_kills` does."""

from loadtest.batch_kills import run


def test_every_line_is_answered_and_billed_once_whatever_is_killed() -> None:
    held = run(lines=240, kills=4, seed=3)
    assert not held.wrong
    assert held.batch["status"] == "completed"
    assert set(held.kills) == {"gateway", "billing", "engine", "batch"}
    assert held.figures["lines billed"] == 240
