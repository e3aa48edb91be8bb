"""Instructions are held against the stored ones, with a tenth to spare."""

from loadtest.bench.instructions import exceeded

STORED = {"request": 1000, "streamed_token": 60}


def test_a_tenth_more_is_taken() -> None:
    assert exceeded({"request": 1100, "streamed_token": 66}, STORED) == []


def test_more_is_said_with_both_figures() -> None:
    assert exceeded({"request": 1101, "streamed_token": 6}, STORED) == [
        "request: 1101 thousand instructions, 1000 are stored"
    ]
