"""The prompts that wait at each instance to be read, and the open requests of other gateways. Pure.

An instance reads prompts one after the other. A prompt of this process counts as read with the first token of
its stream, which also shows how fast the instance reads. For an answer in one piece, and for what other
gateways have sent, prompts drain at that rate.
"""

from typing import Final

from msgspec import Struct, field

from gateway.routing.rank import PREFILL_TOKENS_S

# What another gateway said counts for so long, unless it says something new.
SAID_S_MAX: Final = 2.0
# Of a prompt without a first token, so much at most counts as read: the rate is an estimate.
_READ_MAX: Final = 0.75
# A shorter prompt says little of the rate.
_TOKENS_MIN: Final = 256


class Said(Struct, gc=False):
    """What another gateway said: its open requests, its tokens that wait, and when."""

    open: int
    tokens: float
    at: float


class Load(Struct):
    """The work at one instance. `rate`: tokens a second that it reads. `waiting`: of this process's streams
    without a first token, in their order, the tokens that are to be read; the first of them is being read
    since `began_at`. `unread`: of its other requests, as of `unread_at`. `others`: by gateway;
    `open_elsewhere` and `unread_elsewhere`, as of `elsewhere_at`, are their sums.
    """

    rate: float = PREFILL_TOKENS_S
    waiting: dict[int, float] = field(default_factory=dict)
    began_at: float = 0.0
    unread: float = 0.0
    unread_at: float = 0.0
    others: dict[str, Said] = field(default_factory=dict)
    open_elsewhere: int = 0
    unread_elsewhere: float = 0.0
    elsewhere_at: float = 0.0

    def queued_here(self, now: float) -> float:
        """Tokens of this process that wait to be read."""
        queued = max(0.0, self.unread - self.rate * (now - self.unread_at)) if self.unread else 0.0
        if self.waiting:
            first = next(iter(self.waiting.values()))
            read = min(first * _READ_MAX, self.rate * (now - self.began_at))
            queued += sum(self.waiting.values()) - read
        return queued

    def queued(self, now: float) -> float:
        """Tokens of all gateways that wait to be read."""
        here = self.queued_here(now)
        if not self.unread_elsewhere:
            return here
        return here + max(0.0, self.unread_elsewhere - self.rate * (now - self.elsewhere_at))

    def add_waiting(self, ticket: int, tokens: float, now: float) -> None:
        """A prompt of which `read` will be called."""
        if not self.waiting:
            self.began_at = now
        self.waiting[ticket] = tokens

    def read(self, ticket: int, now: float) -> float | None:
        """This prompt is read, or given up. Returns the tokens a second, if that shows them."""
        is_first = next(iter(self.waiting), None) == ticket
        tokens, took_s = self.waiting.pop(ticket, 0.0), now - self.began_at
        if not is_first:
            return None
        self.began_at = now
        return tokens / took_s if tokens >= _TOKENS_MIN and took_s > 0 else None

    def add_unread(self, tokens: float, now: float) -> None:
        """A prompt of which nothing will say when it is read."""
        self.unread = max(0.0, self.unread - self.rate * (now - self.unread_at)) + tokens
        self.unread_at = now

    def take_back(self, tokens: float, since: float, now: float) -> None:
        """A prompt that was unread `since` then is counted otherwise: what is left of it is taken off."""
        left = tokens - self.rate * (now - since)
        if left > 0:
            self.add_unread(-left, now)
            self.unread = max(0.0, self.unread)

    def told(self, gateway: str, said: Said) -> None:
        """Another gateway has said something new."""
        self.others[gateway] = said
        self._sum_up(said.at)

    def forget(self, now: float) -> None:
        """Drop what was said too long ago."""
        old = [gateway for gateway, said in self.others.items() if now - said.at > SAID_S_MAX]
        for gateway in old:
            del self.others[gateway]
        if old:
            self._sum_up(now)

    def _sum_up(self, now: float) -> None:
        said = self.others.values()
        self.open_elsewhere = sum(each.open for each in said)
        self.unread_elsewhere = sum(max(0.0, each.tokens - self.rate * (now - each.at)) for each in said)
        self.elsewhere_at = now
