"""The models of the benchmark's backend: their names say what they answer.

`s128x10`: 128 tokens, one every 10 ms, usage at the end only. `u128x10`: the same with usage on every chunk
where that is asked for, as vLLM gives it. `…x0`: as fast as the wire takes them.
"""

import re
from dataclasses import dataclass

_NAME = re.compile(rb'"model"\s*:\s*"[^"]*?([su])(\d+)x(\d+)"')
MODELS = ("s128x0", "s128x10", "u128x10")
TOKENS = 128
PROMPT_TOKENS = 32
PLAIN_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """What one model answers."""

    tokens: int
    gap_s: float
    usage_on_chunks: bool


def shape_of(body: bytes) -> Shape:
    """Read off a request's body without parsing it."""
    found = _NAME.search(body)
    if found is None:
        return Shape(TOKENS, 0.0, False)
    return Shape(
        int(found[2]),
        int(found[3]) / 1000,
        found[1] == b"u" and b'"continuous_usage_stats":true' in body.replace(b" ", b""),
    )
