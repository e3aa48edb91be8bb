"""One real request through the gateway, shown as it streams, and its bill: tokens, price, amount, and what
the engine itself counted.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import httpx

from billing.wire.certificates import checked_by
from deploy.local.admin_api import AdminApi
from deploy.local.progress import StepFailed
from deploy.local.settings import LocalSettings

PROMPT: Final = "In two sentences: what is a token of a language model?"
_MAX_TOKENS: Final = 64
_REQUEST_TIMEOUT_S: Final = 120.0
_NOTICE_S: Final = 10.0
# Usage reaches the ledger within a tenth of a second; a busy machine may need longer.
_BILL_TIMEOUT_S: Final = 20.0
_MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the request's id, and how long the first token and the whole took."""

    request_id: str
    first_token_s: float
    whole_s: float


def send(settings: LocalSettings, key: str, model: str, show: Callable[[str], None]) -> Answer:
    """A streamed chat completion; `show` gets each piece of text. Raises StepFailed. A gateway hears of a
    new instance within a second.
    """
    deadline = time.monotonic() + _NOTICE_S
    while True:
        answer = _send_once(settings, key, model, show, may_wait=time.monotonic() < deadline)
        if answer is not None:
            return answer
        time.sleep(0.1)


def _send_once(
    settings: LocalSettings, key: str, model: str, show: Callable[[str], None], *, may_wait: bool
) -> Answer | None:
    """None when nothing serves the model yet and that may change."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": _MAX_TOKENS,
        "stream": True,
    }
    started, first = time.monotonic(), 0.0
    headers = {"authorization": f"Bearer {key}"}
    url = f"{settings.gateway_url}/v1/chat/completions"
    try:
        with (
            httpx.Client(timeout=_REQUEST_TIMEOUT_S, trust_env=False, verify=checked_by(url)) as client,
            client.stream("POST", url, json=body, headers=headers) as answer,
        ):
            if answer.status_code == 503 and may_wait:
                return None
            if answer.status_code != 200:
                raise _refused(f"{answer.status_code} {answer.read().decode(errors='replace')[:300]}")
            for piece in _pieces(answer.iter_lines()):
                first = first or time.monotonic()
                show(piece)
            request_id = answer.headers["x-request-id"]
    except httpx.HTTPError as exc:
        raise _refused(f"{type(exc).__name__} {exc}") from exc
    return Answer(request_id, (first or started) - started, time.monotonic() - started)


def wait_for_bill(settings: LocalSettings, key: str, request_id: str) -> dict[str, Any]:
    """The tenant's own view of the request, once it is in the ledger. Raises StepFailed."""
    deadline = time.monotonic() + _BILL_TIMEOUT_S
    url, headers = (
        f"{settings.gateway_url}/v1/usage/requests/{request_id}",
        {"authorization": f"Bearer {key}"},
    )
    said = "nothing"
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(url, headers=headers, timeout=5, trust_env=False, verify=checked_by(url))
            said = answer.text[:300]
            if answer.status_code == 200 and answer.json()["state"] == "recorded":
                receipt: dict[str, Any] = answer.json()
                return receipt
        except httpx.HTTPError as exc:
            said = f"{type(exc).__name__} {exc}"
        time.sleep(0.05)
    raise StepFailed(
        f"the request is not in the ledger after {_BILL_TIMEOUT_S:.0f} s; the gateway says: {said}",
        "Read the log of billing; `make status` says whether it runs.",
        settings.logs / "billing.log",
    )


def engine_counters(admin: AdminApi, instance: str) -> dict[str, Any]:
    """The audit's line of one instance."""
    for line in admin.get("audit")["instances"]:
        if line["instance"] == instance:
            found: dict[str, Any] = line
            return found
    nothing = {"prompt": 0, "generation": 0}
    return {"instance": instance, "produced": nothing, "residual": nothing, "counters": False}


def bill_lines(receipt: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """The bill as a person reads it. `before` and `after` are the instance's counters around the request."""
    billed, price = receipt["billed"], receipt["price"] or {}
    uncached = billed["prompt"] - billed["cached"]
    yield f"bill of {receipt['request_id']} ({receipt['ending']}, {receipt['pricing']})"
    yield f"    {'':<14}{'tokens':>8}{'USD per million':>18}{'USD':>16}"
    rows = (
        ("input", uncached, "input"),
        ("cached input", billed["cached"], "cached_input"),
        ("output", billed["output"], "output"),
    )
    for name, tokens, kind in rows:
        each = price.get(kind)
        amount = "" if each is None else f"{(Decimal(each) * tokens / _MILLION).normalize():f}"
        yield f"    {name:<14}{tokens:>8}{each or 'none':>18}{amount:>16}"
    total = billed["prompt"] + billed["output"]
    yield f"    {'total':<14}{total:>8}{'':>18}{receipt['amount'] or 'none':>16}"
    counted = {kind: after["produced"][kind] - before["produced"][kind] for kind in ("prompt", "generation")}
    residual = after["residual"]["prompt"] + after["residual"]["generation"]
    yield (
        f"    engine's own counters: {counted['prompt']} prompt + {counted['generation']} generation "
        f"tokens meanwhile; audit residual {residual}"
    )


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """The text of an OpenAI stream. Raises StepFailed on an error event."""
    for line in lines:
        if not line.startswith("data:") or line.endswith("[DONE]"):
            continue
        event = json.loads(line.removeprefix("data:"))
        if "error" in event:
            raise _refused(str(event["error"].get("message", event["error"])))
        for choice in event.get("choices", ()):
            yield choice.get("delta", {}).get("content") or ""


def _refused(said: str) -> StepFailed:
    return StepFailed(
        f"the request was not served: {said}", "Read the gateway's log; `make status` says what runs."
    )
