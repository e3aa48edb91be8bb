"""What a gateway's answer to a line means, and how it is written into the output. Pure.

It owns the forms of results, OpenAI's and Anthropic's, and which failures are tried again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from billing.wire.routes import Dialect

_BACKOFF_FIRST_S: Final = 1.0
_BACKOFF_MAX_S: Final = 60.0
# Longer than a gateway says; a limit of a day may say hours.
_RETRY_AFTER_MAX_S: Final = 3_600.0
# The service has no capacity now, or is away: tried again as long as the batch lasts.
_WAITED_FOR: Final = frozenset({429, 503})
# Failures that may be the line's own fault, so that they are tried only so often. 401: the key was revoked,
# or a clock is wrong.
_TRIED_AGAIN: Final = frozenset({401, 408, 500, 502, 504})
FAILURES_MAX: Final = 5
# It was on two engines when they died. It may have run beside what kills them, so it is tried once more.
_QUARANTINED: Final = "request_quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens as usage objects of answers name them."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """A gateway's answer to one attempt."""

    status: int
    headers: Mapping[str, str]
    body: Any


def retry_in_s(answered: Answered, attempt: int, failures: int) -> float | None:
    """After how many seconds the line is to be sent again; None: this answer is its result. `failures`: those
    of its earlier attempts.
    """
    if failures_of(answered):
        if failures >= FAILURES_MAX:
            return None
    elif answered.status in _WAITED_FOR:
        if answered.headers.get("x-should-retry") == "false" and "retry-after-ms" not in answered.headers:
            return None  # no waiting helps
    else:
        return None
    backoff_s: float = min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2 ** min(attempt, 10) / 2)
    said = answered.headers.get("retry-after-ms", "")
    return (
        max(backoff_s, min(_RETRY_AFTER_MAX_S, int(said) / 1000))
        if said.isascii() and said.isdigit()
        else backoff_s
    )


def failures_of(answered: Answered) -> int:
    """What it counts towards `FAILURES_MAX`."""
    error = _member(answered.body if isinstance(answered.body, dict) else {}, "error")
    if _QUARANTINED in {error.get("code"), _member(error, "details").get("error_code")}:
        return FAILURES_MAX
    return int(answered.status in _TRIED_AGAIN)


def result_line(dialect: Dialect, custom_id: str, request_id: str, answered: Answered) -> bytes:
    """The line of the output, or of the error file, that says how a line was answered."""
    if dialect is Dialect.ANTHROPIC:
        succeeded = answered.status == 200
        result = (
            {"type": "succeeded", "message": answered.body}
            if succeeded
            else {"type": "errored", "error": answered.body}
        )
        return orjson.dumps({"custom_id": custom_id, "result": result}, option=orjson.OPT_APPEND_NEWLINE)
    response = {"status_code": answered.status, "request_id": request_id, "body": answered.body}
    return _openai(custom_id, request_id, response, None)


def unserved_line(dialect: Dialect, custom_id: str, name: str, outcome: str) -> bytes:
    """The line for one that was not served because its batch had expired or was cancelled."""
    expired = outcome == "expired"
    if dialect is Dialect.ANTHROPIC:
        result = {"type": "expired" if expired else "canceled"}
        return orjson.dumps({"custom_id": custom_id, "result": result}, option=orjson.OPT_APPEND_NEWLINE)
    error = {
        "code": "batch_expired" if expired else "batch_cancelled",
        "message": "This request could not be executed before the completion window expired."
        if expired
        else "This request was not executed because the batch was cancelled.",
    }
    return _openai(custom_id, name, None, error)


def usage_of(body: Any) -> Usage:
    """The usage of an answer, in whichever dialect; 0 for what it does not say."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return Usage()
    details = _member(usage, "prompt_tokens_details", "input_tokens_details")
    if "cache_read_input_tokens" in usage:  # Anthropic's: `input_tokens` are without the cached ones
        cached = _count(usage, "cache_read_input_tokens")
        prompt = _count(usage, "input_tokens") + cached + _count(usage, "cache_creation_input_tokens")
    else:
        cached = _count(details, "cached_tokens")
        prompt = _count(usage, "prompt_tokens") or _count(usage, "input_tokens")
    written = _member(usage, "completion_tokens_details", "output_tokens_details")
    return Usage(
        input_tokens=prompt,
        cached_tokens=cached,
        output_tokens=_count(usage, "completion_tokens") or _count(usage, "output_tokens"),
        reasoning_tokens=_count(written, "reasoning_tokens"),
    )


def _openai(custom_id: str, request_id: str, response: Any, error: Any) -> bytes:
    line = {
        "id": f"batch_req_{request_id.removeprefix('req_')}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _member(usage: dict[str, Any], *names: str) -> dict[str, Any]:
    found: dict[str, Any] = next((usage[name] for name in names if isinstance(usage.get(name), dict)), {})
    return found


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if type(value) is int and value > 0 else 0
