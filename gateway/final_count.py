"""Asks an engine, by request id, for the final token count of a request whose answer did not contain one.
This runs off the request path.

An answer ends without usage if the engine refused the request late, if the stream was cut off, or if the
client disconnected while the engine was stalled. The caller is answered at once. The request stays open, with
its reservation, until the engine has said what it produced, or is gone. Then it is settled, once. This module
owns when to ask again and when to give up. It knows nothing of billing.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Final

from billing.wire.ending import Ending
from billing.wire.instance_entry import InstanceEntry
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
# Stop asking an engine that never answers and is never declared gone. Billing asks later, by the id in the
# event.
_ASKED_S_MAX: Final = 600.0


class FinalCounts:
    """The lookups of one process. `settle` is called when a request's figures are as good as they will
    get.
    """

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
        """Settle now if the figures are known, else as soon as the engine has said them. No cancellation can
        come between.
        """
        if not needs_final_count(exchange):
            self._settle(exchange, ending, http_status)
            return
        exchange.ended = Ended(ending, http_status)
        part: Exchange | None = exchange
        while part is not None:  # so that the next round records how it ended, in all its parts
            part.recorded.at = 0.0
            part = part.previous
        task = asyncio.create_task(self._find_out(exchange, ending, http_status), name="final-count")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def give_up(self) -> None:
        """The process is ending: settle what no engine has answered yet with the figures so far. Billing asks
        later.
        """
        self._giving_up.set()

    async def _find_out(self, exchange: Exchange, ending: Ending, http_status: int) -> None:
        try:
            exchange.final_count = await self._ask_until_known(exchange)
        except Exception:
            log.exception(
                "bug while asking an engine for a final count", extra={"request_id": exchange.request_id}
            )
        finally:
            self._settle(exchange, ending, http_status)

    async def _ask_until_known(self, exchange: Exchange) -> Produced | None:
        await exchange.attempt.until_over()
        until = time.monotonic() + _ASKED_S_MAX
        tries = 0
        while True:
            count = await self._ask(exchange)
            if count is not None and count.finished:
                return produced(exchange, count)
            if self._is_gone(exchange) or self._giving_up.is_set() or time.monotonic() > until:
                log.warning(
                    "no final count from the engine",
                    extra={"request_id": exchange.request_id, "instance": exchange.attempt.instance.instance},
                )
                return None
            try:
                async with asyncio.timeout(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)]):
                    await self._giving_up.wait()
            except TimeoutError:
                tries += 1

    def _is_gone(self, exchange: Exchange) -> bool:
        """Whether this start of the engine has ended, or its entry has been removed."""
        there = [
            entry.epoch
            for entry in self._instances(exchange.request.model.name)
            if entry.instance == exchange.attempt.instance.instance
        ]
        return exchange.attempt.instance.epoch not in there

    async def _ask(self, exchange: Exchange) -> RequestCount | None:
        """The engine's current count; None if it does not answer, or its answer cannot be trusted."""
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


def needs_final_count(exchange: Exchange) -> bool:
    """Whether the engine may know more about this request than its answer said. Figures with an anomaly are
    not asked about again: they stay flagged.
    """
    return (
        exchange.attempt.in_engine
        and exchange.attempt.instance.counts
        and exchange.parsed.route.metered
        and not exchange.attempt.meter.exact
        and exchange.attempt.meter.anomaly in {None, USAGE_MISSING}
    )


def produced(exchange: Exchange, count: RequestCount) -> Produced | None:
    """The engine's count as the tenant is billed: each prompt counts once. None if it contradicts what the
    engine said before.
    """
    said = exchange.attempt.meter.produced()
    another = count.since > exchange.attempt.started_at
    if not count.known and (said.output or exchange.attempt.answered or another):
        return None  # it has forgotten the request, or is another process than the one that ran it
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
