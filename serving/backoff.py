"""How long to wait before an engine that died is restarted. Pure: it gets the time that the engine had been
healthy.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Doubles from `first_s` to `most_s`. A run that was healthy for `reset_after_s` starts again at
    `first_s`.
    """

    first_s: float = 1.0
    most_s: float = 60.0
    reset_after_s: float = 300.0
    _next_s: float = 0.0

    def after(self, healthy_s: float) -> float:
        """The wait in seconds after a run that was healthy for `healthy_s` (0: it never started)."""
        if self._next_s == 0.0 or healthy_s >= self.reset_after_s:
            self._next_s = self.first_s
        wait_s = self._next_s
        self._next_s = min(self._next_s * 2, self.most_s)
        return wait_s
