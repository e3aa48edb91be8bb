"""What this process knows of the engines of models that have several: their prefix caches, and the work that
waits there. It does no I/O: `shared_news` brings what other gateways send.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from billing.wire.cached_prompt import Lost
from gateway.catalogue.entries import Model
from gateway.routing.loads import Load, Said
from gateway.routing.news import News, Outbox
from gateway.routing.prefix_index import ENTRY_BYTES, PrefixIndex
from gateway.routing.prompt_hashes import joined_hash, seed_of
from gateway.routing.rank import calibrated_prefill

# Tokens of an answer, until there were some; and how much the last answer counts in their mean.
_ANSWER_TOKENS: Final = 128.0
_LAST_COUNTS: Final = 1 / 16
_LAST_RATE_COUNTS: Final = 1 / 8
_ODD: Final = 2.0
_SEEDS_MAX: Final = 100_000


class Router:
    """The knowledge of one process. `open_here`: its open requests by instance. `troubled`: the instances of
    which it is asked whether they are `avoided`. `first_turn`: another one in each process. `on_news` is
    called when there is something to tell the other gateways.
    """

    def __init__(
        self,
        *,
        index_bytes: int,
        open_here: Mapping[str, int],
        troubled: Collection[str],
        avoided: Callable[[str], bool],
        first_turn: int,
    ) -> None:
        self.index = PrefixIndex(index_bytes // ENTRY_BYTES)
        self.learns = index_bytes >= ENTRY_BYTES
        self.open_here = open_here
        self.troubled = troubled
        self.avoided = avoided
        self.loads: dict[str, Load] = {}
        self._answer_tokens: dict[str, float] = {}
        self._rates: dict[str, tuple[int | None, float]] = {}
        self.news = Outbox()
        self.on_news: Callable[[], None] = lambda: None
        self._seeds: dict[tuple[str, str, str], tuple[int, int]] = {}
        self._turn = first_turn
        self._last_ticket = 0

    def load(self, instance: str) -> Load:
        """The work at an instance."""
        load = self.loads.get(instance)
        if load is None:
            load = self.loads[instance] = Load()
        return load

    def seeds(self, model: Model, salt: str) -> tuple[int, int]:
        """Of prompts, and of sessions."""
        names = (model.name, model.engine_model, salt)
        seeds = self._seeds.get(names)
        if seeds is None:
            if len(self._seeds) >= _SEEDS_MAX:
                self._seeds.clear()
            seeds = self._seeds[names] = seed_of("prompt", *names), seed_of("session", *names)
        return seeds

    def next_turn(self) -> int:
        """Of a request that has nothing in common with others."""
        self._turn += 1
        return self._turn

    def next_ticket(self) -> int:
        """What stands for a request that is sent."""
        self._last_ticket += 1
        return self._last_ticket

    def answer_tokens(self, model: Model) -> float:
        """Of a usual answer."""
        return self._answer_tokens.get(model.name, _ANSWER_TOKENS)

    def answered(self, model: Model, tokens: int) -> None:
        """So long was an answer."""
        usual = self.answer_tokens(model)
        self._answer_tokens[model.name] = usual + (tokens - usual) * _LAST_COUNTS

    def rate(self, model: Model) -> float:
        """Prompt tokens a second that an instance of the model reads: as calibrated, and then as seen."""
        capacity, rate = self._rates.get(model.name, (None, 0.0))
        if not rate or capacity != model.capacity_mu_s:
            rate = calibrated_prefill(model.weights, model.capacity_mu_s)
            self._rates[model.name] = model.capacity_mu_s, rate
        return rate

    def seen_rate(self, model: Model, seen: float) -> None:
        """An instance of the model has read a prompt at this rate. One that lasted oddly counts little."""
        rate = self.rate(model)
        seen = min(rate * _ODD, max(rate / _ODD, seen))
        self._rates[model.name] = model.capacity_mu_s, rate + (seen - rate) * _LAST_RATE_COUNTS

    def changed(self, instance: str) -> None:
        """The work of this process there has changed."""
        if not self.news.instances:
            self.on_news()
        self.news.instances.add(instance)

    def tell(self, gateway: str) -> bytes:
        """The message to the other gateways."""
        now = time.monotonic()
        loads = {
            instance: (max(0, self.open_here.get(instance, 0)), int(self.load(instance).queued_here(now)))
            for instance in self.news.instances
        }
        return self.news.take(gateway, loads)

    def hear(self, news: News) -> None:
        """Another gateway's message."""
        now = time.monotonic()
        for instance, (open_requests, tokens) in news.loads.items():
            self.load(instance).told(news.gateway, Said(open_requests, tokens, now))
        for sent in (*news.prompts, *news.sessions):
            hashes = [joined_hash(sent.seed, rest) for rest in sent.hashes]
            self.index.learn(hashes, self.index.number(sent.instance, sent.epoch))

    def hear_lost(self, lost: Lost) -> None:
        """What an engine's cache has lost."""
        if lost.hashes is None:
            self.index.forget_engine(lost.instance, lost.epoch)
            return
        number = self.index.number(lost.instance, lost.epoch)
        for seed, hashes in lost.hashes:
            self.index.forget((joined_hash(seed, rest) for rest in hashes), number)

    def forget(self, instances: Iterable[str]) -> None:
        """Drop what other gateways said long ago, and all but these instances."""
        now, known = time.monotonic(), set(instances)
        for instance in [*self.loads]:
            self.loads[instance].forget(now)
            if instance not in known and not self.open_here.get(instance):
                del self.loads[instance]
