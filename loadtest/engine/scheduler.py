"""The engine's loop: who waits, who runs, and one token for each running sequence a step.

A step lasts `decode_ms` plus the prompt tokens computed in it at the prefill rate, so long prompts slow
everybody, as they do in vLLM. Waiting sequences start by priority (lower first), then by arrival; when the
room for tokens is used up, the one that would start last goes back to wait.
"""

import asyncio
import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from loadtest.engine.options import EngineOptions
from loadtest.engine.request_counts import RequestBook
from loadtest.engine.sequence import Sequence


@dataclass(slots=True)
class Counters:
    """What /metrics counts; a prompt counts with its first output token."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    finished: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("stop", "length", "abort", "error"), 0)
    )


class Scheduler:
    """Owns every live sequence. Answers are told of each token in the step in which it is made."""

    def __init__(self, options: EngineOptions, book: RequestBook) -> None:
        self._options = options
        self._book = book
        self._decode_s = options.decode_ms / 1000
        self._kv_tokens_max = max(options.kv_tokens, options.context_tokens)
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._running: list[Sequence] = []
        self._by_id: dict[str, list[Sequence]] = {}
        self._arrivals = 0
        self._arrivals_considered = 0
        self._kv_tokens = 0
        self._work = asyncio.Event()
        self.counters = Counters()

    @property
    def running(self) -> int:
        return sum(1 for sequence in self._running if sequence.running)

    @property
    def waiting(self) -> int:
        """Those for which the last step had no room, as vLLM's gauge has it: what has come since has not
        been looked at yet.
        """
        considered = self._arrivals_considered
        return sum(1 for _, arrival, each in self._waiting if each.finish is None and arrival <= considered)

    @property
    def kv_usage(self) -> float:
        return self._kv_tokens / self._kv_tokens_max

    def submit(self, sequences: Iterable[Sequence]) -> None:
        """Queue the sequences of one request."""
        for sequence in sequences:
            self._arrivals += 1
            sequence.arrival = self._arrivals
            self._by_id.setdefault(sequence.engine_id, []).append(sequence)
            heapq.heappush(self._waiting, (sequence.priority, sequence.arrival, sequence))
        self._work.set()

    def abort(self, engine_ids: Iterable[str]) -> None:
        """Stop by id: each sequence finishes with `abort` and its answer ends in the normal way."""
        for engine_id in engine_ids:
            for sequence in self._by_id.pop(engine_id, ()):
                if sequence.finish is None:
                    text = sequence.abort()
                    self._ended(sequence)
                    sequence.answer.token(sequence, text)
        self._work.set()

    def drop(self, sequences: Iterable[Sequence], why: str) -> None:
        """Stop without an answer: its reader is gone, or a fault ended it."""
        for sequence in sequences:
            if sequence.finish is None:
                sequence.finish = why
                self._ended(sequence)
        self._work.set()

    async def run(self) -> None:
        """Step for as long as the process lives."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time()
        while True:
            resumes_at = self._start_step()
            now = loop.time()
            if resumes_at > now:
                await self._idle(None if math.isinf(resumes_at) else resumes_at - now)
                continue
            late = now - ends_at < self._decode_s  # a little: catch up; more: the engine was idle
            ends_at = (ends_at if late else now) + self._decode_s + self._prefill_s()
            await asyncio.sleep(ends_at - now if ends_at > now else 0)
            self._produce(loop.time())

    async def _idle(self, timeout_s: float | None) -> None:
        self._work.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._work.wait()
        except TimeoutError:
            return

    def _start_step(self) -> float:
        """Admit what fits; when the next step may begin (infinity: nothing to do)."""
        options = self._options
        self._running = [sequence for sequence in self._running if sequence.running]
        while self._waiting:
            _, _, sequence = self._waiting[0]
            if sequence.finish is None:
                if (
                    len(self._running) >= options.slots
                    or self._kv_tokens + sequence.kv_tokens + 1 > self._kv_tokens_max
                ):
                    break
                self._admit(sequence)
            heapq.heappop(self._waiting)
        self._arrivals_considered = self._arrivals
        return min((sequence.resumes_at for sequence in self._running), default=math.inf)

    def _admit(self, sequence: Sequence) -> None:
        if sequence.output == 0:
            sequence.answer.look_up_prefix(sequence)
        sequence.to_prefill = max(1, sequence.kv_tokens - sequence.cached)
        self._kv_tokens += sequence.kv_tokens
        sequence.running = True
        self._running.append(sequence)

    def _prefill_s(self) -> float:
        """Compute a part of the prompts that are not computed yet; how long that takes."""
        budget = self._options.step_tokens_max
        for sequence in self._running:
            if sequence.to_prefill:
                part = min(sequence.to_prefill, budget)
                sequence.to_prefill -= part
                budget -= part
        rate = self._options.prefill_tokens_per_s
        return (self._options.step_tokens_max - budget) / rate if rate else 0.0

    def _produce(self, now: float) -> None:
        counters = self.counters
        for sequence in self._running:
            if sequence.to_prefill or not sequence.running or sequence.resumes_at > now:
                continue
            if self._kv_tokens >= self._kv_tokens_max and self._preempt(sequence):
                continue
            before = sequence.output
            text = sequence.step()
            made = sequence.output - before
            self._kv_tokens += made
            answer = sequence.answer
            truth = answer.truth
            if not sequence.was_read:
                sequence.was_read = True
                counters.prompt_tokens += sequence.prompt_tokens
                counters.cached_tokens += sequence.cached
                truth.prompt += sequence.prompt_tokens
                truth.cached += sequence.cached
            counters.generation_tokens += made
            truth.output += made
            if sequence.finish is not None:
                self._ended(sequence)
            elif sequence.limits.drip_s or sequence.limits.stall_after is not None:
                self._hold(sequence, now)
            answer.token(sequence, text)

    @staticmethod
    def _hold(sequence: Sequence, now: float) -> None:
        limits = sequence.limits
        stalled = limits.stall_after is not None and sequence.output >= limits.stall_after
        sequence.resumes_at = math.inf if stalled else now + limits.drip_s

    def _preempt(self, sequence: Sequence) -> bool:
        """Make room by sending the last in line back to wait; whether that was `sequence` itself."""
        live = [other for other in self._running if other.running]
        last = max(live, key=lambda other: (other.priority, other.arrival))
        if len(live) == 1:
            return False
        last.running = False
        self.counters.preemptions += 1
        self._kv_tokens -= last.kv_tokens
        heapq.heappush(self._waiting, (last.priority, last.arrival, last))
        return last is sequence

    def _ended(self, sequence: Sequence) -> None:
        finish = sequence.finish or "error"
        self.counters.finished[finish if finish in self.counters.finished else "abort"] += 1
        sequence.answer.truth.finishes.append(finish)
        self._book.ended(sequence.answer)
        same_id = self._by_id.get(sequence.engine_id)
        if same_id is not None and all(other.finish is not None for other in same_id):
            del self._by_id[sequence.engine_id]
        if sequence.running:
            sequence.running = False
            self._kv_tokens -= sequence.kv_tokens
