"""Token counts in the forms of the routes, and the lies that may be told instead."""

from dataclasses import dataclass
from typing import Any

_BACKWARDS_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Usage:
    """`created`: prompt tokens newly put into the prefix cache."""

    prompt: int
    output: int
    cached: int = 0
    created: int = 0

    def chat(self) -> dict[str, Any]:
        """Not streamed."""
        details = {
            "cached_tokens": self.cached,
            "created_cache_tokens": self.created,
            "multimodal_tokens": None,
        }
        return self._counts() | {"prompt_tokens_details": details, "completion_tokens_details": None}

    def chat_final(self) -> dict[str, Any]:
        """The last chunk of a stream."""
        return self._counts() | {
            "prompt_tokens_details": {"cached_tokens": self.cached, "created_cache_tokens": self.created}
        }

    def completions(self) -> dict[str, Any]:
        """Not streamed."""
        details = {"cached_tokens": self.cached, "created_cache_tokens": None, "multimodal_tokens": None}
        return self._counts() | {"prompt_tokens_details": details, "completion_tokens_details": None}

    def completions_final(self) -> dict[str, Any]:
        """The last chunk of a stream."""
        return self._counts() | {"prompt_tokens_details": {"cached_tokens": self.cached}}

    def responses(self) -> dict[str, Any]:
        return {
            "input_tokens": self.prompt,
            "input_tokens_details": {
                "cached_tokens": self.cached, "cache_write_tokens": self.created, "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0,
            "output_tokens_per_turn": [], "tool_output_tokens_per_turn": []},
            "total_tokens": self.prompt + self.output,
        }  # fmt: skip

    def pooled(self) -> dict[str, Any]:
        """Of the prompt alone."""
        return self._counts() | {"prompt_tokens_details": None, "completion_tokens_details": None}

    def messages(self) -> dict[str, Any]:
        """`input_tokens` is what was neither read from nor written to the cache."""
        return {
            "input_tokens": self.prompt - self.cached - self.created,
            "output_tokens": self.output,
            "cache_creation_input_tokens": self.created,
            "cache_read_input_tokens": self.cached,
        }

    def _counts(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.output,
            "completion_tokens": self.output,
        }


def lie(usage: Usage, kind: str | None, *, final: bool) -> Usage | None:
    """What is reported in place of the truth; None: nothing at all."""
    match kind:
        case None:
            return usage
        case "missing":
            return None
        case "negative":
            return Usage(usage.prompt, -usage.output - 1, usage.cached, usage.created)
        case "zero":
            return Usage(0, 0)
        case "huge":
            return Usage(usage.prompt, usage.output * 1000 + 1_000_000, usage.cached, usage.created)
        case "huge_prompt":
            return Usage(1 << 62, usage.output)
        case "backwards":  # every third report, and the last one, is lower than the one before
            lower = final or usage.output % 3 == 0
            return Usage(
                usage.prompt,
                max(0, usage.output - _BACKWARDS_TOKENS) if lower else usage.output,
                usage.cached,
                usage.created,
            )
        case _:
            return Usage(usage.prompt, usage.output, usage.prompt + 100, 0)
