"""What a vLLM server's `/metrics` says that we need: load and token counters. Pure; it does not know how the text was fetched."""

import math
from dataclasses import dataclass
from typing import Final

from billing.wire.instance_entry import EngineLoad
from billing.wire.tokens import CounterPair

_RUNNING: Final = "vllm:num_requests_running"
_WAITING: Final = "vllm:num_requests_waiting"
_KV_USAGE: Final = "vllm:kv_cache_usage_perc"
_PROMPT: Final = "vllm:prompt_tokens_total"
_GENERATION: Final = "vllm:generation_tokens_total"
_WANTED: Final = frozenset({_RUNNING, _WAITING, _KV_USAGE, _PROMPT, _GENERATION})


@dataclass(frozen=True, slots=True)
class EngineReading:
    """One look at an engine."""

    load: EngineLoad
    counters: CounterPair

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits, so the counters stand still."""
        return self.load.running == 0 and self.load.waiting == 0


def parse_metrics(text: str) -> EngineReading:
    """Read the exposition text. Several engine cores behind one server are added up (their KV usage: the fullest one). ValueError when a metric
    is missing (a missing counter is not zero) or no number.
    """
    values: dict[str, list[float]] = {name: [] for name in _WANTED}
    for line in text.splitlines():
        if not line.startswith("vllm:"):
            continue
        name = line.partition("{")[0] if "{" in line else line.partition(" ")[0]
        if name in _WANTED:
            # Label values of these series hold no spaces after the closing brace; a timestamp is never written by vLLM.
            value = float(line.rpartition(" ")[2])
            if not math.isfinite(value):
                raise ValueError(f"the engine says that {name} is {value}")
            values[name].append(value)
    missing = sorted(name for name, found in values.items() if not found)
    if missing:
        raise ValueError(f"the engine's metrics lack {', '.join(missing)}")
    return EngineReading(
        load=EngineLoad(
            running=int(sum(values[_RUNNING])),
            waiting=int(sum(values[_WAITING])),
            kv_usage=max(values[_KV_USAGE]),
        ),
        counters=CounterPair(prompt=int(sum(values[_PROMPT])), generation=int(sum(values[_GENERATION]))),
    )
