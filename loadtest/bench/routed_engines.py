"""Several simulated engines in one process, each with its own port, queue and prefix cache: `python -m
loadtest.bench.routed_engines PORT…`.

They are as slow as large models are, so that what the machine itself does hardly counts.
"""

import sys

import uvloop

from loadtest.engine.engine import Engine
from loadtest.engine.options import EngineOptions
from loadtest.engine.server import serve

MODEL = "sim"
CONTEXT_TOKENS = 4096
PREFILL_TOKENS_PER_S = 4_000.0
DECODE_MS = 20.0
# 48,000 tokens: a fraction of what all prompts of a run need.
_CACHE_BLOCKS = 3_000


def options(port: int) -> EngineOptions:
    """Of one engine."""
    return EngineOptions(
        port=port, model=MODEL, api_key=None, prefill_tokens_per_s=PREFILL_TOKENS_PER_S, decode_ms=DECODE_MS,
        context_tokens=CONTEXT_TOKENS, cache_blocks_max=_CACHE_BLOCKS, keep_alive_s=600.0,
        step_tokens_max=512,
    )  # fmt: skip


if __name__ == "__main__":
    chosen = [options(int(port)) for port in sys.argv[1:]]
    uvloop.run(serve(*((Engine(each), each) for each in chosen)))
