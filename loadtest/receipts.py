"""Holds what was billed against what was received, request by request, over `GET /v1/usage/requests/{id}`."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from loadtest.outcome import Ending, Outcome

# Between the end of a request and its receipt lie a stream, a consumer and a transaction.
_RECORDED_S_MAX = 60.0
_POLL_S = 0.2
_CALLERS = 8


@dataclass(slots=True, kw_only=True)
class Comparison:
    """Sums over all receipts, and each disagreement in words."""

    receipts: int = 0
    received_output: int = 0
    billed_output: int = 0
    billed_prompt: int = 0
    absorbed_output: int = 0
    disagreements: list[str] = field(default_factory=list)


def compare(outcomes: Iterable[Outcome], base_url: str, api_key: str) -> Comparison:
    """Fetch every receipt, waiting for those that are not written yet."""
    named = [outcome for outcome in outcomes if outcome.request_id is not None]
    comparison = Comparison()
    deadline = time.monotonic() + _RECORDED_S_MAX
    with httpx.Client(
        base_url=base_url, headers={"authorization": f"Bearer {api_key}"}, timeout=30, trust_env=False
    ) as client:

        def fetch(outcome: Outcome) -> dict[str, Any] | None:
            return _receipt(client, outcome, deadline)

        with ThreadPoolExecutor(_CALLERS) as pool:
            for outcome, receipt in zip(named, pool.map(fetch, named), strict=True):
                _judge(outcome, receipt, comparison)
    return comparison


def _receipt(client: httpx.Client, outcome: Outcome, deadline: float) -> dict[str, Any] | None:
    """The recorded receipt; None when there is none in time. A refused request need not have one."""
    while True:
        answer = client.get(f"/v1/usage/requests/{outcome.request_id}")
        if answer.status_code == 200:
            receipt: dict[str, Any] = answer.json()
            if receipt.get("state") == "recorded":
                return receipt
        elif outcome.ending is Ending.REFUSED and answer.status_code == 404:
            return None
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL_S)


def _judge(outcome: Outcome, receipt: dict[str, Any] | None, comparison: Comparison) -> None:
    comparison.received_output += received_tokens(outcome)
    if receipt is not None:
        comparison.receipts += 1
        comparison.billed_output += receipt["billed"]["output"]
        comparison.billed_prompt += receipt["billed"]["prompt"]
        comparison.absorbed_output += receipt["absorbed"]["output"]
    if (wrong := disagreement(outcome, receipt)) is not None:
        comparison.disagreements.append(
            f"{outcome.request_id} ({outcome.call.route}, {outcome.ending}): {wrong}"
        )


def received_tokens(outcome: Outcome) -> int:
    """Output tokens that the caller knows of: as the stream told, else at least one for each piece of
    text.
    """
    return outcome.usage[1] if outcome.usage is not None else outcome.text_events


def disagreement(outcome: Outcome, receipt: dict[str, Any] | None) -> str | None:
    """What is wrong with a bill, in words. Of a caller who left the engine may have produced more than
    arrived, never less.
    """
    if outcome.ending is Ending.REFUSED:
        billed = receipt["billed"] if receipt else {"prompt": 0, "output": 0}
        return f"refused, yet billed {billed}" if billed["prompt"] or billed["output"] else None
    if receipt is None:
        return "there is no receipt"
    prompt, output = receipt["billed"]["prompt"], receipt["billed"]["output"]
    match outcome.ending:
        case Ending.COMPLETE:
            if outcome.usage is None:
                return "the stream told no usage"
            return (
                None
                if (prompt, output) == outcome.usage
                else f"billed {prompt} + {output}, received {outcome.usage[0]} + {outcome.usage[1]}"
            )
        case Ending.LEFT:
            if outcome.text_events <= output <= outcome.call.output_tokens_max:
                return None
            return (
                f"billed {output} output tokens, received {outcome.text_events}, asked for at most "
                f"{outcome.call.output_tokens_max}"
            )
        case _:
            return f"failed, yet billed {prompt} + {output}" if prompt or output else None
