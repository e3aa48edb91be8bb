"""The choice of an instance for one request, and what becomes of it there. It does no I/O.

While the model has one ready instance there is nothing to choose, and nothing is computed.
"""

import time
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct

from billing.wire.cached_prompt import CachedPrompt
from billing.wire.instance_entry import InstanceEntry
from gateway.catalogue.entries import Model
from gateway.metrics import Metrics
from gateway.request import ParsedRequest
from gateway.routing.loads import Load
from gateway.routing.prompt_hashes import (
    BLOCK_BYTES,
    BLOCK_ENDS,
    chain,
    name_hash,
    prompt_bytes,
    split_hash,
)
from gateway.routing.rank import Candidate, Ranking, Rates, Why, rank
from gateway.routing.router import Router

Headers = Sequence[tuple[bytes, bytes]]

_SESSION_HEADER: Final = b"x-session-id"
_SESSION_PARAM: Final = "prompt_cache_key"
_SESSION_BYTES_MAX: Final = 256
# What a session is worth: half of the prompt, and at least so many tokens.
_SESSION_TOKENS_MIN: Final = 512
_BYTES_PER_TOKEN: Final = 4


class _Prompt(Struct):
    """Of one request. `turn`: by which it takes its turn among instances that are equally good."""

    hashes: list[int]
    tokens_per_byte: float
    session: int | None
    turn: int


class _Sent(Struct):
    """Where it was sent. `cached`: tokens of its prompt that should be cached there. `ticket`: of its prompt
    among those that wait there, 0 if it does not.
    """

    instance: str
    why: Why
    cached: float
    load: Load
    ticket: int


class _Meant(Struct):
    """Where it will be sent unless its cell decides otherwise. Until then its prompt counts as unread there,
    so that requests that come meanwhile know of it; if it is never sent, that drains.
    """

    load: Load
    tokens: float
    since: float


class Choice:
    """Of a request that came with these headers. `salt`: its tenant's."""

    __slots__ = (
        "_cached",
        "_headers",
        "_meant",
        "_model",
        "_parsed",
        "_prompt",
        "_ranking",
        "_router",
        "_salt",
        "_sent",
    )

    def __init__(
        self, router: Router, parsed: ParsedRequest, model: Model, salt: str, headers: Headers
    ) -> None:
        self._router = router
        self._parsed = parsed
        self._model = model
        self._salt = salt
        self._headers = headers
        self._prompt: _Prompt | None = None
        self._ranking: Ranking | None = None
        self._cached: dict[str, float] = {}
        self._meant: _Meant | None = None
        self._sent: _Sent | None = None

    def ranked(self, ready: list[InstanceEntry]) -> list[InstanceEntry]:
        """These instances, the best first."""
        if len(ready) < 2:
            return ready
        router, prompt = self._router, self._prompt or self._read_prompt()
        self._prompt = prompt
        rates = Rates.of(self._model.weights, router.rate(self._model))
        candidates = self._candidates(ready, prompt, rates.prefill)
        self._cached = {each.entry.instance: each.cached for each in candidates if each.cached}
        self._ranking = rank(candidates, self._parsed.input_tokens_estimate, rates, prompt.turn)
        self._mean(self._ranking.entries[0].instance)
        return self._ranking.entries

    @property
    def preferred(self) -> tuple[str, int] | None:
        """The instance that should have some of the prompt cached, and how many tokens of it: a request that
        has to wait for a slot had better wait for one there. None if any instance will do.
        """
        ranking = self._ranking
        if ranking is None or ranking.why not in (Why.PREFIX, Why.SESSION):
            return None
        instance = ranking.entries[0].instance
        return instance, int(self._cached.get(instance, 0.0))

    def sent(self, instance: InstanceEntry, *, tells_first_token: bool) -> None:
        """It is sent there now. `tells_first_token`: `first_token` will be called."""
        if self._ranking is None or self._prompt is None:
            return
        router, prompt, name = self._router, self._prompt, instance.instance
        self._mean(None)
        why = self._ranking.why if name == self._ranking.entries[0].instance else Why.NEXT
        load, ticket, now = router.load(name), 0, time.monotonic()
        if tells_first_token:
            ticket = router.next_ticket()
            load.add_waiting(ticket, self._uncached(name), now)
        else:
            load.add_unread(self._uncached(name), now)
        self._sent = _Sent(name, why, self._cached.get(name, 0.0), load, ticket)
        number = router.index.number(name, instance.epoch)
        router.news.add_prompt(name, instance.epoch, router.index.learn(prompt.hashes, number))
        if prompt.session is not None and router.index.learn((prompt.session,), number):
            router.news.add_session(name, instance.epoch, prompt.session)
        router.changed(name)

    def prompt_text(self) -> bytes | None:
        """Its prompt, for an engine that tells what becomes of it in its cache. None if nothing is known of
        it: it is short, or the model had one instance.
        """
        prompt = self._prompt
        if prompt is None or not prompt.hashes:
            return None
        per_byte = prompt.tokens_per_byte
        parts = [split_hash(hashed) for hashed in prompt.hashes]
        ends = (int(end * per_byte) for end in BLOCK_ENDS)
        return CachedPrompt(
            parts[0][0], tuple((rest, end) for (_, rest), end in zip(parts, ends, strict=False))
        ).to_text()

    def first_token(self) -> None:
        """The engine has read the prompt."""
        self._read(is_read=True)

    def ended(self, output_tokens: int) -> None:
        """Nothing of it runs there any more."""
        if self._sent is not None:
            self._read(is_read=False)
            self._router.changed(self._sent.instance)
            if output_tokens:
                self._router.answered(self._model, output_tokens)

    def _mean(self, instance: str | None) -> None:
        now, meant = time.monotonic(), self._meant
        if meant is not None:
            meant.load.take_back(meant.tokens, meant.since, now)
            self._meant = None
        if instance is not None:
            load, tokens = self._router.load(instance), self._uncached(instance)
            load.add_unread(tokens, now)
            self._meant = _Meant(load, tokens, now)
            self._router.changed(instance)

    def _uncached(self, instance: str) -> float:
        return self._parsed.input_tokens_estimate - self._cached.get(instance, 0.0)

    def _read(self, *, is_read: bool) -> None:
        sent = self._sent
        if sent is not None and sent.ticket:
            rate = sent.load.read(sent.ticket, time.monotonic())
            sent.ticket = 0
            if is_read and rate is not None:
                self._router.seen_rate(self._model, rate)
            self._router.changed(sent.instance)

    def answered(self, metrics: Metrics, prompt: int, cached: int) -> None:
        """Its usage: tokens of its prompt, and how many of them the engine had cached."""
        if self._sent is not None:
            part = self._sent.cached / max(1, self._parsed.input_tokens_estimate)
            metrics.routed(self._sent.why.value, int(part * prompt), cached)

    @property
    def decided(self) -> dict[str, Any]:
        """Why it was sent where it is, and how many tokens of its prompt should be cached there; for its
        receipt. Empty if there was no choice.
        """
        sent = self._sent
        return {} if sent is None else {"routed": sent.why.value, "cached_expected": int(sent.cached)}

    def _read_prompt(self) -> _Prompt:
        router, parsed = self._router, self._parsed
        hashes: list[int] = []
        session, tokens_per_byte = None, 0.0
        if router.learns and parsed.route.generates:
            seed, session_seed = router.seeds(self._model, self._salt)
            if parsed.input_tokens_estimate * _BYTES_PER_TOKEN >= BLOCK_BYTES:
                prompt = prompt_bytes(parsed.body, parsed.route.prompt_param)
                hashes = chain(prompt, seed)
                tokens_per_byte = parsed.input_tokens_estimate / len(prompt)
            if named := self._session_name():
                session = name_hash(named, session_seed)
        turn = hashes[0] if hashes else router.next_turn() if session is None else session
        return _Prompt(hashes, tokens_per_byte, session, turn)

    def _session_name(self) -> bytes:
        """Empty if its caller has not named one."""
        named = self._parsed.body.get(_SESSION_PARAM)
        if named:
            return str(named).encode()
        for name, value in self._headers:
            if name == _SESSION_HEADER and len(value) <= _SESSION_BYTES_MAX:
                return value
        return b""

    def _candidates(self, ready: list[InstanceEntry], prompt: _Prompt, rate: float) -> list[Candidate]:
        router, now = self._router, time.monotonic()
        index, open_here, troubled = router.index, router.open_here, router.troubled
        depths = index.depths(prompt.hashes) if prompt.hashes else {}
        keeper = None if prompt.session is None else index.holder(prompt.session)
        kept = max(_SESSION_TOKENS_MIN, self._parsed.input_tokens_estimate / 2)
        # An open answer is half done, on average.
        tokens_to_come = router.answer_tokens(self._model) / 2
        candidates, loads = [], router.loads
        for entry in ready:
            name = entry.instance
            load = loads.get(name) or router.load(name)
            load.rate = rate
            cached, is_keeper = 0.0, False
            if depths or keeper is not None:
                number = index.number(name, entry.epoch)
                depth = depths.get(number)
                cached = BLOCK_ENDS[depth - 1] * prompt.tokens_per_byte if depth else 0.0
                is_keeper = number == keeper
            # The engine's own figure is up to a second old and includes our requests; the greater of the two
            # is the better estimate.
            known, said = open_here.get(name, 0) + load.open_elsewhere, entry.load
            told = said.running + said.waiting
            candidates.append(
                Candidate(
                    entry,
                    cached,
                    kept if is_keeper else 0.0,
                    load.queued(now) if load.waiting or load.unread or load.unread_elsewhere else 0.0,
                    (known if known > told else told) * tokens_to_come,
                    name in troubled and router.avoided(name),
                )
            )
        return candidates
