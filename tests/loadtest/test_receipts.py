"""A bill that differs from what was received is found, and an honest one is not."""

from typing import Any

import pytest

from loadtest.outcome import Ending, Outcome
from loadtest.receipts import disagreement
from loadtest.workload import Call

CALL = Call(
    kind="short",
    route="chat",
    path="/v1/chat/completions",
    body={},
    output_tokens_max=20,
    leave_after_events=None,
)


def outcome(ending: Ending, usage: tuple[int, int] | None = None, text_events: int = 0) -> Outcome:
    return Outcome(
        call=CALL,
        ending=ending,
        request_id="req_1",
        code=None,
        first_text_s=0.1,
        last_text_s=0.2,
        took_s=0.3,
        text_events=text_events,
        usage=usage,
    )


def receipt(prompt: int, output: int) -> dict[str, Any]:
    return {"billed": {"prompt": prompt, "output": output}}


@pytest.mark.parametrize(
    ("seen", "bill"),
    [
        (outcome(Ending.COMPLETE, (30, 12), 12), receipt(30, 12)),
        (outcome(Ending.LEFT, None, 5), receipt(30, 5)),
        (outcome(Ending.LEFT, None, 5), receipt(30, 9)),
        (outcome(Ending.LEFT, None, 0), receipt(0, 0)),
        (outcome(Ending.ERROR, None, 5), receipt(0, 0)),
        (outcome(Ending.BROKEN, None, 5), receipt(0, 0)),
        (outcome(Ending.REFUSED), None),
        (outcome(Ending.REFUSED), receipt(0, 0)),
    ],
)
def test_honest_bills_agree(seen: Outcome, bill: dict[str, Any] | None) -> None:
    assert disagreement(seen, bill) is None


@pytest.mark.parametrize(
    ("seen", "bill"),
    [
        (outcome(Ending.COMPLETE, (30, 12), 12), receipt(30, 13)),
        (outcome(Ending.COMPLETE, (30, 12), 12), receipt(29, 12)),
        (outcome(Ending.COMPLETE, (30, 12), 12), receipt(0, 0)),
        (outcome(Ending.COMPLETE, None, 12), receipt(30, 12)),
        (outcome(Ending.COMPLETE, (30, 12), 12), None),
        (outcome(Ending.LEFT, None, 5), receipt(30, 4)),
        (outcome(Ending.LEFT, None, 5), receipt(30, 21)),
        (outcome(Ending.LEFT, None, 5), None),
        (outcome(Ending.ERROR, None, 5), receipt(30, 5)),
        (outcome(Ending.BROKEN, None, 5), receipt(30, 0)),
        (outcome(Ending.REFUSED), receipt(30, 0)),
    ],
)
def test_wrong_bills_are_found(seen: Outcome, bill: dict[str, Any] | None) -> None:
    assert disagreement(seen, bill)
