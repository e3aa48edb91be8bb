"""The circuit breakers of one process: instances that fail are kept out of rotation for a while. Pure; the
caller brings the time (monotonic seconds).

An instance that has failed once is avoided for a moment: others are tried first. After several failures in a
row, or when it says itself that it takes no more (429 with `retry-after`) or refuses us (401), its breaker
*opens*: it gets no request until a pause is over. Then one request is let through, the *probe*. If that is
answered the breaker closes, else it opens again, for longer. Only instances in trouble are remembered, so
that nothing is looked up while all is well.
"""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from billing.wire.instance_entry import InstanceEntry
from gateway.errors import InstancesBusy, NoInstance

# An instance that just failed is tried after all others for this long.
AVOIDED_S: Final = 2.0
FAILURES_MAX: Final = 5
# The first pause, and the longest: each one in a row is twice as long.
PAUSE_S: Final = 1.0
PAUSE_S_MAX: Final = 15.0
# A random part of each pause, so that processes do not probe in lockstep.
JITTER: Final = 0.25
# An operator must mend what makes an instance refuse us.
REFUSED_S: Final = 30.0
# No instance is believed to be busy for longer.
RETRY_AFTER_S_MAX: Final = 120.0
# A probe that is not answered for this long is given up, so that another may be sent.
PROBE_S: Final = 30.0
_RETRY_MS_MIN: Final = 100


@dataclass(slots=True, kw_only=True)
class _Trouble:
    """`failures`, `pauses`: in a row. `open_until` 0: closed. `probe_until`: a probe is out."""

    epoch: str
    failures: int = 0
    pauses: int = 0
    avoided_until: float = 0.0
    open_until: float = 0.0
    probe_until: float = 0.0
    limited: bool = False

    @property
    def is_resting(self) -> bool:
        """Whether it is open and no probe is out. What still comes was sent before it opened, and says
        nothing of now.
        """
        return self.open_until > 0 and not self.probe_until

    def takes(self, now: float) -> bool:
        """Whether it may get a request: it is closed, or due for a probe."""
        return now >= self.open_until and now >= self.probe_until


class Breakers:
    """`on_change` is told of an instance whose breaker opens or closes."""

    def __init__(self, on_change: Callable[[str, bool], None] = lambda _instance, _open: None) -> None:
        # Instances that have failed and have not answered since.
        self.troubled: dict[str, _Trouble] = {}
        self._on_change = on_change

    def avoided(self, instance: str, now: float) -> bool:
        """Whether others are tried first."""
        trouble = self.troubled.get(instance)
        return trouble is not None and (now < trouble.avoided_until or not trouble.takes(now))

    def usable(self, instances: Collection[InstanceEntry], now: float) -> list[InstanceEntry]:
        """Those that may get a request now."""
        return [entry for entry in instances if (found := self._of(entry)) is None or found.takes(now)]

    def lets_through(self, entry: InstanceEntry, now: float) -> bool:
        """Whether this request may be sent there. If its breaker is open, the request is the probe."""
        trouble = self._of(entry)
        if trouble is None or not trouble.open_until:
            return True
        if not trouble.takes(now):
            return False
        trouble.probe_until = now + PROBE_S
        return True

    def failed(self, entry: InstanceEntry, now: float) -> None:
        """It failed a request."""
        trouble = self._note(entry)
        trouble.failures += 1
        trouble.avoided_until = now + AVOIDED_S
        if not trouble.is_resting and (trouble.probe_until or trouble.failures >= FAILURES_MAX):
            self._open(entry, trouble, now, self._next_pause(trouble))

    def limited(self, entry: InstanceEntry, now: float, retry_after_s: float | None) -> float:
        """It takes no more requests now. Returns for how many seconds it gets none."""
        trouble = self._note(entry)
        trouble.limited = True
        if retry_after_s is not None:
            pause_s = min(retry_after_s, RETRY_AFTER_S_MAX)
        elif trouble.is_resting:
            return max(trouble.open_until - now, 0.0)
        else:
            pause_s = self._next_pause(trouble)
        self._open(entry, trouble, now, pause_s)
        return pause_s

    def refused(self, entry: InstanceEntry, now: float) -> None:
        """It refuses us, whatever the request."""
        self._open(entry, self._note(entry), now, REFUSED_S)

    def answered(self, entry: InstanceEntry) -> None:
        """It has begun to answer: if that was the probe, it takes requests again. One more failure opens it
        again.
        """
        trouble = self._of(entry)
        if trouble is not None and trouble.probe_until:
            trouble.open_until = trouble.probe_until = 0.0
            trouble.failures, trouble.limited = FAILURES_MAX - 1, False
            self._on_change(entry.instance, False)

    def succeeded(self, entry: InstanceEntry) -> None:
        """It has answered a request to its end: it is out of trouble, unless it rests."""
        self.answered(entry)
        trouble = self.troubled.get(entry.instance)
        if trouble is not None and not trouble.is_resting:
            del self.troubled[entry.instance]

    def forget(self, instance: str) -> None:
        """It is gone, and whatever comes under its name begins anew."""
        if self.troubled.pop(instance, None) is not None:
            self._on_change(instance, False)

    def ended(self, entry: InstanceEntry, *, well: bool) -> None:
        """A request there has ended; not `well`, it says nothing, and another one may be the probe."""
        if well:
            self.succeeded(entry)
        elif (trouble := self._of(entry)) is not None:
            trouble.probe_until = 0.0

    def error(self, instances: Collection[InstanceEntry], now: float) -> NoInstance | None:
        """What the caller gets where all of these are open, with the time until the first of them may be
        tried; None if there are none.
        """
        troubles = [found for entry in instances if (found := self._of(entry)) is not None]
        if not troubles:
            return None
        first = min(troubles, key=lambda found: max(found.open_until, found.probe_until))
        wait_s = max(first.open_until, min(first.probe_until, now + PAUSE_S)) - now
        retry_ms = max(_RETRY_MS_MIN, int(wait_s * 1000))
        return InstancesBusy(retry_ms) if first.limited else NoInstance(retry_ms)

    def _of(self, entry: InstanceEntry) -> _Trouble | None:
        """Its trouble. An engine that was started again has none."""
        trouble = self.troubled.get(entry.instance)
        if trouble is not None and trouble.epoch != entry.epoch:
            del self.troubled[entry.instance]
            if trouble.open_until:
                self._on_change(entry.instance, False)
            return None
        return trouble

    def _note(self, entry: InstanceEntry) -> _Trouble:
        return self._of(entry) or self.troubled.setdefault(entry.instance, _Trouble(epoch=entry.epoch))

    def _next_pause(self, trouble: _Trouble) -> float:
        pause_s: float = min(PAUSE_S * 2**trouble.pauses, PAUSE_S_MAX)
        trouble.pauses = min(trouble.pauses + 1, 16)
        return pause_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311

    def _open(self, entry: InstanceEntry, trouble: _Trouble, now: float, pause_s: float) -> None:
        was_open = trouble.open_until > 0
        trouble.open_until = max(trouble.open_until, now + pause_s)
        trouble.probe_until = 0.0
        if not was_open:
            self._on_change(entry.instance, True)
