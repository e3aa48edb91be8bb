"""What callers are told of their limits, in OpenAI's names and, on Anthropic's routes, in its own beside
them.
"""

from billing.cell.replies import Levels
from billing.wire.limits import Limits
from gateway.request import Dialect
from gateway.waiting.limit_headers import limit_headers
from tests.billing.cell.requests import limits_of

# 2026-11-28T12:00:00.001Z: the next whole second is a moment later.
NOW_MS = 1_795_867_200_001
TENANT, TENANT_LEVELS = limits_of(requests=60, units_mu=1_000_000), Levels(0, (15.0, 250_500))
NONE, EMPTY = Limits(), Levels(0)
OPENAI = {
    b"x-ratelimit-limit-requests": b"60",
    b"x-ratelimit-remaining-requests": b"45",
    b"x-ratelimit-reset-requests": b"15000ms",
    b"x-ratelimit-limit-units": b"1000",
    b"x-ratelimit-remaining-units": b"749",
    b"x-ratelimit-reset-units": b"15030ms",
}
ANTHROPIC = {
    b"anthropic-ratelimit-requests-limit": b"60",
    b"anthropic-ratelimit-requests-remaining": b"45",
    b"anthropic-ratelimit-requests-reset": b"2026-11-28T12:00:16Z",
    b"anthropic-ratelimit-units-limit": b"1000",
    b"anthropic-ratelimit-units-remaining": b"749",
    b"anthropic-ratelimit-units-reset": b"2026-11-28T12:00:16Z",
}


def test_openais_routes_have_openais_names_only() -> None:
    assert dict(limit_headers(TENANT, NONE, TENANT_LEVELS, EMPTY, Dialect.OPENAI, NOW_MS)) == OPENAI


def test_anthropics_routes_have_both() -> None:
    found = limit_headers(TENANT, NONE, TENANT_LEVELS, EMPTY, Dialect.ANTHROPIC, NOW_MS)
    assert dict(found) == OPENAI | ANTHROPIC
    assert len(found) == len(OPENAI | ANTHROPIC)


def test_the_tighter_of_tenant_and_key_is_told() -> None:
    key, levels = limits_of(requests=10), Levels(0, (9.0,))
    told = dict(limit_headers(TENANT, key, TENANT_LEVELS, levels, Dialect.ANTHROPIC, NOW_MS))
    assert told[b"anthropic-ratelimit-requests-limit"] == b"10"
    assert told[b"anthropic-ratelimit-requests-remaining"] == b"1"
    assert told[b"anthropic-ratelimit-requests-reset"] == b"2026-11-28T12:00:55Z"
    assert told[b"anthropic-ratelimit-units-limit"] == b"1000"


def test_without_a_limit_there_is_nothing_to_tell() -> None:
    assert limit_headers(NONE, NONE, EMPTY, EMPTY, Dialect.ANTHROPIC, NOW_MS) == []


def test_tokens_are_tokens_and_the_window_with_least_left_is_told() -> None:
    limits = Limits.of(tokens_per_minute=1_000, tokens_per_day=50_000, units_per_minute=9)
    told = dict(
        limit_headers(limits, NONE, Levels(0, (8_000.0, 250.0, 49_400.0)), EMPTY, Dialect.ANTHROPIC, NOW_MS)
    )
    assert told[b"x-ratelimit-limit-tokens"] == told[b"anthropic-ratelimit-tokens-limit"] == b"50000"
    assert told[b"x-ratelimit-remaining-tokens"] == b"600"
    # 49,400 of 50,000 drain in that part of a day.
    assert told[b"x-ratelimit-reset-tokens"] == b"85363200ms"
    assert (told[b"x-ratelimit-limit-units"], told[b"x-ratelimit-remaining-units"]) == (b"9", b"1")
    assert b"x-ratelimit-limit-requests" not in told
