"""How fast a simulated engine is, and what a calibration of it would find. Pure arithmetic.

A step lasts `decode_ms` and gives every sequence one token, and prompts are computed at a rate of their own;
so with all slots taken a token of output costs `decode_ms / slots` of the engine's time, and one of input `1
/ prefill_tokens_per_s`. One work unit is one uncached token of input.
"""

from dataclasses import dataclass
from typing import Protocol


class Speed(Protocol):
    """What work costs, and how much of it is done in a second."""

    @property
    def capacity_units_s(self) -> float:
        """Work units a second."""

    def units(self, input_tokens: float, output_tokens: float) -> float:
        """What a request costs."""


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """As one vLLM server with a small model on one card: 32 sequences at 10 ms a token, 20,000 tokens of
    prompt a second.
    """

    slots: int = 32
    decode_ms: float = 10.0
    prefill_tokens_per_s: float = 20_000.0
    context_tokens: int = 8192

    @property
    def weights(self) -> dict[str, int]:
        """Milliunits a token, as the admin API takes them. What is cached costs this engine nothing."""
        output_mu = 1000 * self.prefill_tokens_per_s * self.decode_ms / 1000 / self.slots
        return {"w_in_mu": 1000, "w_cached_mu": 0, "w_out_mu": round(output_mu)}

    @property
    def capacity_units_s(self) -> float:
        """Work units a second with all slots taken, whatever the mix of input and output."""
        return self.prefill_tokens_per_s

    def units(self, input_tokens: float, output_tokens: float) -> float:
        """What a request costs."""
        weights = self.weights
        return (weights["w_in_mu"] * input_tokens + weights["w_out_mu"] * output_tokens) / 1000

    def words(self) -> list[str]:
        """As the engine's command line takes it."""
        return [
            "--slots", str(self.slots), "--decode-ms", str(self.decode_ms),
            "--prefill-tokens-per-s", str(self.prefill_tokens_per_s), "--context", str(self.context_tokens),
        ]  # fmt: skip
