"""Probes an engine that somebody wants to add: whether it answers, what it serves, what it can do, and where
its counters are.

It owns the HTTP questions and their bounds; it knows no table and no Redis. It follows no redirect and uses
no proxy.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from billing.catalogue.instances import EngineFacts
from billing.fleet.engine_reading import Counters, Unreachable, read_engine
from billing.fleet.engine_request_counts import read_request_counts
from billing.refusals import Unreachable as EngineUnreachable
from billing.wire.engine_kinds import VLLM, key_headers
from billing.wire.routes import POOLING_ROUTES, ROUTE_FACTS, TEXT_ROUTES, Route, generates

TIMEOUT_S: Final = 5.0
_BYTES_MAX: Final = 1024 * 1024
# What a server says of a path that it does not have.
_NO_ROUTE: Final = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class Probe:
    """What was seen, and what an operator should know of it."""

    facts: EngineFacts
    warnings: tuple[str, ...]


def probe_engine(
    client: httpx.Client, url: str, key: str | None, engine_model: str, context_tokens: int
) -> Probe:
    """Ask the engine at this base URL. Raises `refusals.Unreachable` when it does not answer as an
    OpenAI-compatible one.
    """
    headers = key_headers(VLLM, key)
    listed = ask(client, "GET", f"{url}/v1/models", headers)
    warnings = _check_models(listed, url, engine_model, context_tokens)
    abort_path = f"{url}/inference/v1/abort_requests"
    abort = _can_abort(ask(client, "POST", abort_path, headers, {"request_ids": []}))
    routes = _routes(client, url, headers)
    if not abort and (routes is None or generates(routes)):  # vLLM cannot where it pools
        warnings.append(
            "It cannot stop a request by id (for vLLM: start it with --enable-scale-out); a disconnect "
            "closes the connection instead."
        )
    reading = read_engine(client, url, key)
    if isinstance(reading, Counters):
        epoch = reading.started or epoch_now()
        counts = isinstance(read_request_counts(client, url, key), Counters)
        if not counts:
            warnings.append(
                "It does not tell what each request has produced (for vLLM: start it with --middleware "
                "taas_request_counts.RequestCounts, see the README); after a crash the audit can only bound "
                "that."
            )
        facts = EngineFacts(
            epoch=epoch,
            abort=abort,
            baseline_prompt=reading.tokens.prompt,
            baseline_generation=reading.tokens.generation,
            counts_requests=counts,
            routes=routes,
        )
        return Probe(facts, tuple(warnings))
    why = f" ({reading.reason})" if isinstance(reading, Unreachable) else ""
    warnings.append(
        f"It has no token counters at /metrics{why}: the audit cannot compare them with what is billed."
    )
    return Probe(
        EngineFacts(
            epoch=epoch_now(),
            abort=abort,
            baseline_prompt=0,
            baseline_generation=0,
            has_counters=False,
            routes=routes,
        ),
        tuple(warnings),
    )


def _routes(client: httpx.Client, url: str, headers: Mapping[str, str]) -> tuple[str, ...] | None:
    """The routes of an engine that only generates, or only pools; None for all, or if that is not clear. An
    empty request costs nothing: an engine that has the route refuses it.
    """

    def has_any(names: tuple[str, ...]) -> bool:
        paths = [facts.path for name in names if (facts := ROUTE_FACTS[Route(name)]).smallest is not None]
        return any(ask(client, "POST", f"{url}{path}", headers, {}).status not in _NO_ROUTE for path in paths)

    generates_, pools = has_any(TEXT_ROUTES), has_any(POOLING_ROUTES)
    return None if generates_ == pools else TEXT_ROUTES if generates_ else POOLING_ROUTES


def unprobed() -> EngineFacts:
    """The probe of an engine that did not answer and is added nevertheless."""
    return EngineFacts(epoch=epoch_now(), abort=False, baseline_prompt=0, baseline_generation=0)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine answered."""

    status: int
    body: bytes


def ask(
    client: httpx.Client,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: Any = None,
    *,
    within_s: float = TIMEOUT_S,
) -> Answer:
    """One question, of bounded time and size. Raises `refusals.Unreachable`."""
    until, content = time.monotonic() + within_s, bytearray()
    try:
        with client.stream(method, url, headers=dict(headers), json=body, timeout=within_s) as response:
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > until:
                    raise EngineUnreachable(f"{url} has not answered within {within_s} s.", param="url")
                if len(content) > _BYTES_MAX:
                    raise EngineUnreachable(f"{url} answers with more than {_BYTES_MAX} bytes.", param="url")
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        reason = str(exc) or type(exc).__name__
        raise EngineUnreachable(
            f"{url} does not answer ({reason}). Is the address right, and does it run? `--force` adds it all "
            "the same.",
            param="url",
        ) from exc
    return Answer(response.status_code, bytes(content))


def _check_models(answer: Answer, url: str, engine_model: str, context_tokens: int) -> list[str]:
    """Warnings about the engine's list of models. Raises if it refuses us, or answers without a list of
    models.
    """
    if answer.status in {401, 403}:
        raise EngineUnreachable(
            f"{url} refuses the key given (HTTP {answer.status}).", param="key", code="engine_refused"
        )
    if answer.status == 404:
        return ["It has no /v1/models, so it is not known whether it serves the model."]
    if answer.status != 200:
        raise EngineUnreachable(
            f"{url}/v1/models answers HTTP {answer.status}.", param="url", code="engine_refused"
        )
    listed = listed_models(answer.body)
    if listed is None:
        raise EngineUnreachable(
            f"{url}/v1/models is not a list of models.", param="url", code="engine_refused"
        )
    if engine_model not in listed:
        # A backend may serve more models than it lists, so the operator decides.
        names = ", ".join(sorted(listed))[:300] or "none"
        return [
            f"It does not list {engine_model!r} but: {names}. If it knows the model by another name, add it "
            "with `--engine-model`."
        ]
    length = listed[engine_model]
    if length is not None and length < context_tokens:
        return [
            f"Its context is {length} tokens, the model's entry says {context_tokens}: longer requests will "
            "fail."
        ]
    return []


def _can_abort(answer: Answer) -> bool:
    """vLLM answers with an empty body; a backend that answers every path alike does not."""
    return answer.status == 200 and answer.body.strip() in {b"", b"{}", b"null"}


def listed_models(body: bytes) -> dict[str, int | None] | None:
    """Context length (where told) by model id; None when the body is no list of models."""
    try:
        models = json.loads(body)["data"]
        found = {model["id"]: model.get("max_model_len") for model in models}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not all(isinstance(name, str) for name in found):
        return None
    return {name: length if type(length) is int else None for name, length in found.items()}


def epoch_now() -> str:
    """The epoch of an engine that does not say when it started."""
    return f"added-{time.time_ns() // 1_000_000}"
