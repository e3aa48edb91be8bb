"""What an engine has produced for one request, as figures. Pure: it reads no stream and does no I/O; the
meters that read streams are built on it.

Figures are the engine's own, cumulative, counted as its counters count (docs/design.md): a prompt counts once
for each sample that has produced a token, and costs nothing before that.
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from billing.wire.value import Value


class ProtocolViolation(Exception):
    """The engine's bytes break its protocol. The message names the rule, never the content."""


class InvalidToolCall(ProtocolViolation):
    """The arguments of a call are no JSON object, which the caller's dialect cannot say. That is the model's
    fault: its engine works.
    """


class Produced(Value, frozen=True):
    """Tokens produced for one request so far. `prompt`: what a tenant may be billed, each prompt once.
    `prompt_counted`: by how much the engine's counters moved. `cached`: the part of `prompt` that came from
    the prefix cache, known only at the end.
    """

    prompt: int = 0
    cached: int = 0
    output: int = 0
    prompt_counted: int = 0


class Meter(Protocol):
    """Reads usage from an answer while it passes through. `finished`: the answer is complete by its own
    protocol. `failed`: the engine reported a failure, in `failure` (its JSON). `aborted`: the engine was told
    to stop it. `exact`: `produced()` is the engine's final figure. `anomaly`: what is wrong with its figures.
    `told`: a provider's own usage object, as far as it has told it. Two values for the caller are set before
    the first byte is fed (None leaves the engine's value): `model`, as requested, and `tier`, the class that
    served it (`gateway.protocol.used_tier`).
    """

    finished: bool
    failed: bool
    failure: bytes
    aborted: bool
    exact: bool
    anomaly: str | None
    told: dict[str, Any] | None
    model: str | None
    tier: bytes | None

    def feed(self, chunk: bytes) -> bytes:
        """Take what arrived, return what to pass on (whole events only). Raises ProtocolViolation."""

    def produced(self) -> Produced:
        """Cumulative figures, which never decrease."""

    def output_tokens(self) -> int:
        """Output tokens so far; cheap."""

    def counted(self) -> bool:
        """Whether `produced` is our own count of chunks, because the engine has reported no usage yet. It is
        never billed.
        """


# The anomaly of an answer without usage; the others are of its figures.
USAGE_MISSING: Final = "usage_missing"
# No request has so many tokens; their cost in milliunits still fits where it is recorded.
COUNT_MAX: Final = 10**9 - 1


def token_count(figures: Mapping[str, Any], name: str) -> int:
    """A figure of a usage object. 0 is 0; a missing, non-integer or absurdly high one raises ValueError."""
    value = figures.get(name)
    if type(value) is not int or value > COUNT_MAX:
        raise ValueError(name)
    return value


def optional_count(figures: Mapping[str, Any], name: str) -> int:
    """The same, but a missing figure is 0."""
    return 0 if figures.get(name) is None else token_count(figures, name)


def cached_count(figures: Mapping[str, Any], details_name: str) -> int:
    """The cached part in `details_name`; 0 if the engine does not report it. Raises ValueError for a
    non-integer.
    """
    details = figures.get(details_name)
    return optional_count(details, "cached_tokens") if isinstance(details, dict) else 0


def usage_anomaly(prompt: int, cached: int, output: int, output_tokens_max: int | None) -> str | None:
    """The name of the anomaly of final figures, None if there is none."""
    if prompt < 0 or cached < 0 or output < 0:
        return "usage_negative"
    if cached > prompt:
        return "usage_cached_above_prompt"
    if output_tokens_max is not None and output > output_tokens_max:
        return "usage_above_max_tokens"
    return None


def clamped(prompt: int, cached: int, output: int, output_tokens_max: int | None) -> tuple[int, int, int]:
    """Wrong figures, clamped to what is possible: absorbed until they are reconciled, never billed."""
    prompt, output = max(prompt, 0), max(output, 0)
    return (
        prompt,
        min(max(cached, 0), prompt),
        output if output_tokens_max is None else min(output, output_tokens_max),
    )


class SampleCounts:
    """Cumulative figures per sample (the index of a choice), turned into `Produced`."""

    __slots__ = ("_output", "_output_max", "_prompt", "_samples_per_prompt", "anomaly")

    def __init__(self, samples_per_prompt: int, output_tokens_max: int | None = None) -> None:
        self._samples_per_prompt = samples_per_prompt
        self._output_max = output_tokens_max
        self._prompt: dict[int, int] = {}
        self._output: dict[int, int] = {}
        self.anomaly: str | None = None

    def saw(self, index: int, prompt: int, output: int) -> None:
        """Note the figures of one sample so far. A negative, too high or decreasing figure is an anomaly and
        is not used.
        """
        if prompt < 0 or output < 0:
            self.anomaly = "usage_negative"
        elif self._output_max is not None and output > self._output_max:
            self.anomaly = "usage_above_max_tokens"
        elif output < self._output.get(index, 0):
            self.anomaly = "usage_backwards"
        else:
            self._prompt[index] = prompt
            self._output[index] = output

    def output_tokens(self) -> int:
        """Over all samples."""
        return sum(self._output.values())

    def produced(self, cached: int) -> Produced:
        """Prompts of samples without a token have cost nothing."""
        counted = output = 0
        once: dict[int, int] = {}
        for index, tokens in self._output.items():
            if tokens > 0:
                output += tokens
                counted += self._prompt[index]
                once[index // self._samples_per_prompt] = self._prompt[index]
        prompt = sum(once.values())
        return Produced(prompt, min(cached, prompt), output, counted)
