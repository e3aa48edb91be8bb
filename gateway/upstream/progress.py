"""Whether an instance makes progress, as this process sees it. An engine may still answer `/health` and
produce nothing.

An instance is silent for as long as none of its streams here has got a token. How long is too long follows
from how long its first tokens took lately. It knows no caller and stops nothing.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from gateway.upstream.attempt import Attempt

# Too long is so many times the slowest of the last first tokens, and never less than this.
_TIMES: Final = 4.0
SILENT_S_MIN: Final = 5.0
_SAMPLES: Final = 32
# Fewer say too little.
_SAMPLES_MIN: Final = 4


class FirstTokens:
    """How long the last first tokens of one start of an engine took, and the prompts that they followed."""

    __slots__ = ("_samples", "epoch")

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def took(self, seconds: float, prompt_tokens: int) -> None:
        """Note one."""
        self._samples.append((seconds, prompt_tokens))

    def silent_s_max(self, prompt_tokens: int, limit_s: float) -> float:
        """The silence in seconds after which something is wrong, while a prompt of this length is read.
        `limit_s`: the most, and what holds while little is known.
        """
        if len(self._samples) < _SAMPLES_MIN:
            return limit_s
        slowest = max((took for took, prompt in self._samples if 2 * prompt >= prompt_tokens), default=None)
        if slowest is None:  # no prompt was as long: in proportion to the longest
            longest = max(1, *(prompt for _, prompt in self._samples))
            slowest = max(took for took, _ in self._samples) * prompt_tokens / longest
        return min(limit_s, max(SILENT_S_MIN, _TIMES * slowest))


class Progress:
    """The progress of all instances. `look` is called in every round with the open attempts."""

    def __init__(self) -> None:
        self._first_tokens: dict[str, FirstTokens] = {}
        self._heard_at: dict[str, float] = {}

    def first_token(self, attempt: Attempt, at: float | None) -> None:
        """When the caller of an attempt got its first token; an earlier part may have given it that."""
        if at is None or at < attempt.started_at:
            return
        name = attempt.instance.instance
        known = self._first_tokens.get(name)
        if known is None or known.epoch != attempt.instance.epoch:
            known = self._first_tokens[name] = FirstTokens(attempt.instance.epoch)
        known.took(at - attempt.started_at, attempt.parsed.input_tokens_estimate)

    def forget(self, instance: str) -> None:
        """It is gone."""
        self._first_tokens.pop(instance, None)

    def look(self, attempts: Iterable[Attempt], now: float, limit_s: float) -> list[Attempt]:
        """The attempts whose instance has been silent for too long, and they with it. Attempts whose caller
        does not read say nothing.
        """
        waiting: dict[str, list[Attempt]] = {}
        for attempt in attempts:
            if not attempt.in_engine or attempt.over or attempt.paused:
                attempt.heard_at = now
                continue
            if not attempt.heard_at:
                attempt.heard_at = attempt.started_at
            tokens = attempt.meter.output_tokens()
            if tokens != attempt.heard_tokens:
                attempt.heard_tokens, attempt.heard_at = tokens, now
                self._heard_at[attempt.instance.instance] = now
            waiting.setdefault(attempt.instance.instance, []).append(attempt)
        self._heard_at = {name: at for name, at in self._heard_at.items() if name in waiting}
        return [
            attempt
            for name, here in waiting.items()
            if self._is_silent(name, here, now, limit_s)
            for attempt in here
            if now - attempt.heard_at >= SILENT_S_MIN
        ]

    def _is_silent(self, name: str, here: list[Attempt], now: float, limit_s: float) -> bool:
        streams = [attempt for attempt in here if attempt.parsed.stream]
        known = self._first_tokens.get(name)
        # An engine that was started again may take longer at first.
        if not streams or known is None or known.epoch != streams[0].instance.epoch:
            return False
        since = max(self._heard_at.get(name, 0.0), min(attempt.heard_at for attempt in streams))
        prompt_tokens = max(attempt.parsed.input_tokens_estimate for attempt in here)
        return now - since >= known.silent_s_max(prompt_tokens, limit_s)
