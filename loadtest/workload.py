"""What is asked for and when: a mix of calls and their arrival times, the same for the same seed. No I/O.

Arrivals are a Poisson process: they do not wait for anybody, as callers do not, so a slow server gets a
longer queue and not a lighter load.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ROUTES = {"chat": 0.70, "messages": 0.14, "completions": 0.08, "responses": 0.08}
_TEXT = (
    "tide wind salt foam gull reef wave sand dune cove surf mist rain bell mast sail keel rope port "
    "pier buoy fish net oar isle bay cape rock moon star"
)
_WORDS = tuple(_TEXT.split(" "))
_SHARED_PREFIXES = 4
_SHARED_PREFIX_WORDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Shares are of all calls; words are of prompts, tokens of answers."""

    model: str
    long_share: float = 0.15
    shared_share: float = 0.25
    disconnect_share: float = 0.10
    short_words: tuple[int, int] = (4, 40)
    long_words: tuple[int, int] = (200, 600)
    output_tokens: tuple[int, int] = (8, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One streamed request. `leave_after_events`: the caller goes away after so many pieces of text; None:
    it stays.
    """

    kind: str
    route: str
    path: str
    body: dict[str, Any]
    output_tokens_max: int
    leave_after_events: int | None


def arrival_times(rate_per_s: float, duration_s: float, seed: int) -> Iterator[float]:
    """Seconds after the start at which calls are made."""
    chance = random.Random(seed)
    at = chance.expovariate(rate_per_s)
    while at < duration_s:
        yield at
        at += chance.expovariate(rate_per_s)


def calls(mix: Mix, seed: int) -> Iterator[Call]:
    """Calls without end."""
    chance = random.Random(seed + 1)
    prefixes = [_text(chance, _SHARED_PREFIX_WORDS) for _ in range(_SHARED_PREFIXES)]
    while True:
        kind, prompt = _prompt(mix, chance, prefixes)
        route = chance.choices(list(ROUTES), list(ROUTES.values()))[0]
        output_max = chance.randint(*mix.output_tokens)
        leave = chance.randrange(output_max) if chance.random() < mix.disconnect_share else None
        path, body = _request(mix.model, route, prompt, output_max)
        yield Call(
            kind=kind,
            route=route,
            path=path,
            body=body,
            output_tokens_max=output_max,
            leave_after_events=leave,
        )


def _prompt(mix: Mix, chance: random.Random, prefixes: list[str]) -> tuple[str, str]:
    drawn = chance.random()
    if drawn < mix.shared_share:
        return "shared", f"{chance.choice(prefixes)} {_text(chance, chance.randint(*mix.short_words))}"
    if drawn < mix.shared_share + mix.long_share:
        return "long", _text(chance, chance.randint(*mix.long_words))
    return "short", _text(chance, chance.randint(*mix.short_words))


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(_WORDS, k=words))


def _request(model: str, route: str, prompt: str, output_max: int) -> tuple[str, dict[str, Any]]:
    """Path and body, as the SDKs send them."""
    messages = [{"role": "user", "content": prompt}]
    usage = {"stream_options": {"include_usage": True}}
    match route:
        case "chat":
            return "/v1/chat/completions", {
                "model": model,
                "messages": messages,
                "max_tokens": output_max,
                "stream": True,
            } | usage
        case "completions":
            return "/v1/completions", {
                "model": model,
                "prompt": prompt,
                "max_tokens": output_max,
                "stream": True,
            } | usage
        case "messages":
            return "/v1/messages", {
                "model": model,
                "messages": messages,
                "max_tokens": output_max,
                "stream": True,
            }
        case _:
            return "/v1/responses", {
                "model": model,
                "input": prompt,
                "max_output_tokens": output_max,
                "stream": True,
            }
