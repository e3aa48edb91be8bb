"""One sample of one prompt while the engine works on it: what it has produced, what of that may be shown,
and why it ended.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtest.engine.tokens import WORDS, natural_length, word_index

if TYPE_CHECKING:
    from loadtest.engine.answer import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a sequence ends; the same for all samples of a request. `output_max` 0: once its prompt is read.
    `hold_back` = characters that may turn out to be part of a stop string.
    """

    output_max: int
    output_min: int
    ignore_eos: bool
    stops: tuple[str, ...]
    stop_after: int | None
    drip_s: float
    stall_after: int | None

    @property
    def hold_back(self) -> int:
        return max((len(stop) for stop in self.stops), default=1) - 1


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """`seed` stands for prompt and sample; `first_position` is where the text goes on when a message is
    continued.
    """

    answer: "Answer"
    engine_id: str
    index: int
    prompt_tokens: int
    seed: int
    first_position: int
    limits: Limits
    priority: int = 0
    arrival: int = 0
    cached: int = 0
    created: int = 0
    to_prefill: int = 0
    running: bool = False
    was_read: bool = False  # its prompt, which the counters have from then on
    output: int = 0
    finish: str | None = None
    stop_reason: str | None = None
    resumes_at: float = 0.0
    word: str = ""  # the last token's text
    text: str = ""
    shown: int = 0

    @property
    def kv_tokens(self) -> int:
        return self.prompt_tokens + self.output

    def step(self) -> str:
        """Produce one token and return the text that may be shown; sets `finish` with the last one. One that
        is pooled produces none.
        """
        limits = self.limits
        if limits.output_max == 0:
            self.finish = "stop"
            return ""
        position = self.first_position + self.output
        self.output += 1
        word = ""
        if (
            not limits.ignore_eos
            and self.output > limits.output_min
            and position + 1 >= (limits.stop_after or natural_length(self.seed))
        ):
            self.finish = "stop"
        else:
            word = WORDS[word_index(self.seed, position)]
            if self.output >= limits.output_max:
                self.finish = "length"
        self.word = word
        return self._show(word) if limits.stops else word

    def _show(self, word: str) -> str:
        self.text += word
        for stop in self.limits.stops:
            found = self.text.find(stop, max(0, len(self.text) - len(word) - len(stop)))
            if found >= 0 and self.output >= self.limits.output_min:
                self.text, self.finish, self.stop_reason = self.text[:found], "stop", stop
        return self._reveal(0 if self.finish else self.limits.hold_back)

    def _reveal(self, held: int) -> str:
        until = max(self.shown, len(self.text) - held)
        visible, self.shown = self.text[self.shown : until], until
        return visible

    def abort(self) -> str:
        """End without another token; returns the text that was held back."""
        self.finish = "abort"
        self.word = ""
        return self._reveal(0)
