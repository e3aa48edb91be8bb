"""The last word of an engine on a request whose answer did not say what it had produced: asked for by id, off
the request's path.

An answer that was refused late, cut off, or left while the engine stood still ends without a usage figure.
Its caller hears of the end at once; the request stays open, with its reservation, until the engine has told
what it produced, or is gone. Then it is settled, once. Owns when to ask again and when to give up. It knows
nothing of bills.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Final

from billing.wire.instance_entry import InstanceEntry
from billing.wire.usage_event import Ending
from gateway.exchange import Ended, Exchange
from gateway.stream.meter import COUNT_MAX, USAGE_MISSING, Produced
from gateway.upstream.adapters import adapter_of
from gateway.upstream.connection import UpstreamError
from gateway.upstream.engine_adapter import RequestCount
from gateway.upstream.engines import Engines

log = logging.getLogger(__name__)

_ASK_S: Final = 2.0
_PAUSES_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_ANSWER_BYTES_MAX: Final = 64 * 1024
# An engine that never answers and is never declared gone: then billing goes on asking, by the id in the
# event.
_ASKED_S_MAX: Final = 600.0


class LastWords:
    """Those of one process. `settle` is given the request when its figures are as good as they will be."""

    def __init__(
        self,
        engines: Engines,
        instances: Callable[[str], Collection[InstanceEntry]],
        settle: Callable[[Exchange, Ending, int], None],
    ) -> None:
        self._engines = engines
        self._instances = instances
        self._settle = settle
        self._tasks: set[asyncio.Task[None]] = set()
        self._giving_up = asyncio.Event()

    def settle(self, exchange: Exchange, ending: Ending, http_status: int) -> None:
        """Settle now where the figures are known; else as soon as the engine has told them. No
        cancellation can come between.
        """
        if not wants_last_word(exchange):
            self._settle(exchange, ending, http_status)
            return
        exchange.ended = Ended(ending, http_status)
        exchange.recorded.at = 0.0  # so that the next round records how it ended
        task = asyncio.create_task(self._find_out(exchange, ending, http_status), name="last-word")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def give_up(self) -> None:
        """The process ends: what no engine has told by now is settled as it stands, and billing asks on."""
        self._giving_up.set()

    async def _find_out(self, exchange: Exchange, ending: Ending, http_status: int) -> None:
        try:
            exchange.last_word = await self._ask_until_told(exchange)
        except Exception:
            log.exception(
                "bug while asking an engine for its last word", extra={"request_id": exchange.request_id}
            )
        finally:
            self._settle(exchange, ending, http_status)

    async def _ask_until_told(self, exchange: Exchange) -> Produced | None:
        await exchange.attempt.until_over()
        until = time.monotonic() + _ASKED_S_MAX
        tries = 0
        while True:
            count = await self._ask(exchange)
            if count is not None and count.finished:
                return produced(exchange, count)
            if self._is_gone(exchange) or self._giving_up.is_set() or time.monotonic() > until:
                log.warning(
                    "the engine's last word was not heard",
                    extra={"request_id": exchange.request_id, "instance": exchange.attempt.instance.instance},
                )
                return None
            try:
                async with asyncio.timeout(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)]):
                    await self._giving_up.wait()
            except TimeoutError:
                tries += 1

    def _is_gone(self, exchange: Exchange) -> bool:
        """Whether this start of the engine is no more, or nobody knows of it any more."""
        there = [
            entry.epoch
            for entry in self._instances(exchange.request.model.name)
            if entry.instance == exchange.attempt.instance.instance
        ]
        return exchange.attempt.instance.epoch not in there

    async def _ask(self, exchange: Exchange) -> RequestCount | None:
        """What the engine says now; None where it does not answer, or not so that it can be believed."""
        adapter = adapter_of(exchange.attempt.instance)
        question = adapter.count(exchange.request_id)
        try:
            async with asyncio.timeout(_ASK_S):
                status, answer = await self._engines.ask(
                    exchange.attempt.instance, question, bytes_max=_ANSWER_BYTES_MAX
                )
        except (UpstreamError, TimeoutError):
            return None
        return adapter.read_count(answer, exchange.request_id) if status == 200 else None


def wants_last_word(exchange: Exchange) -> bool:
    """Whether the engine knows more of this request than its answer has told. Figures that are wrong stay
    in doubt: nobody overrules them.
    """
    return (
        exchange.attempt.in_engine
        and exchange.attempt.instance.counts
        and exchange.parsed.route.metered
        and not exchange.attempt.meter.exact
        and exchange.attempt.meter.anomaly in {None, USAGE_MISSING}
    )


def produced(exchange: Exchange, count: RequestCount) -> Produced | None:
    """The engine's count in the tenant's terms: each prompt once. None where it contradicts what the
    engine has said before.
    """
    said = exchange.attempt.meter.produced()
    another = count.since > exchange.attempt.started_at
    if not count.known and (said.output or exchange.attempt.answered or another):
        return None  # it has forgotten, or is another process than the one that was asked
    parsed = exchange.parsed
    per_prompt = max(1, parsed.samples // max(1, parsed.prompts))
    prompt = said.prompt or count.prompt // per_prompt
    if (
        count.output < said.output
        or count.prompt < prompt
        or count.prompt > COUNT_MAX
        or count.output > COUNT_MAX
    ):
        return None
    return Produced(prompt, min(count.cached // per_prompt, prompt), count.output, count.prompt)
