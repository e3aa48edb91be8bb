"""What the four routes' answers have in common: their sequences, the moment they are complete, and the ways
they can be made to fail.

An answer is told of every token by the scheduler (`token`) and writes it out at once. The subclasses know the
JSON.
"""

import asyncio
import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from loadtest.engine.connection import Exchange
from loadtest.engine.fault_answers import refuse_late
from loadtest.engine.faults import FaultPlan
from loadtest.engine.job import Job
from loadtest.engine.prefix_cache import PrefixCache
from loadtest.engine.scheduler import Scheduler
from loadtest.engine.sequence import Limits, Sequence
from loadtest.engine.speech import speech_of
from loadtest.engine.truth import RequestTruth
from loadtest.engine.usage import Usage, lie

FINGERPRINT = "vllm-0.32.0-simulated"
# Long enough for the bytes before it to leave the process, whatever loop runs underneath.
_FLUSH_S = 0.003
_GARBLED_EVENT = 3


@dataclass(frozen=True, slots=True)
class Identity:
    """The id in the answer, and the ids by which each prompt's samples are aborted."""

    answer_id: str
    engine_ids: tuple[str, ...]


class Answer(ABC):
    """One request being answered."""

    def __init__(
        self,
        *,
        job: Job,
        identity: Identity,
        exchange: Exchange,
        truth: RequestTruth,
        plan: FaultPlan,
        scheduler: Scheduler,
        cache: PrefixCache,
    ) -> None:
        self.job = job
        self.id = identity.answer_id
        self.truth = truth
        self.created = int(time.time())
        self._exchange = exchange
        self._plan = plan
        self._scheduler = scheduler
        self._cache = cache
        self.speech = speech_of(job.body, plan)
        # By which `/taas/request_counts` names it, while it is in the engine.
        self.caller_id = ""
        self._done = False
        self._events = 0
        self._held_event = b""
        self._opened = False
        self._watched = plan.die_after_tokens is not None or plan.end_after_tokens is not None
        self.sequences = self._make_sequences(identity)
        self._open = len(self.sequences)
        self.texts: list[list[str]] = [[] for _ in self.sequences]
        self.words: list[list[str]] = [[] for _ in self.sequences]  # tokens as they are, kept for logprobs

    def _make_sequences(self, identity: Identity) -> list[Sequence]:
        job, plan = self.job, self._plan
        limits = Limits(
            output_max=job.output_max,
            output_min=job.output_min,
            ignore_eos=job.ignore_eos,
            stops=job.stops,
            stop_after=self.speech.length or plan.stop_after,
            drip_s=plan.slow_drip_s,
            stall_after=plan.stall_after_tokens,
        )
        seed = job.body.get("seed") or 0
        return [
            Sequence(
                answer=self,
                engine_id=identity.engine_ids[at],
                index=at * job.samples + sample,
                prompt_tokens=len(prompt.tokens),
                seed=prompt.seed + int(seed) * 7919 + sample * 104_729,
                first_position=prompt.first_position,
                limits=limits,
                priority=job.priority,
            )
            for at, prompt in enumerate(job.prompts)
            for sample in range(job.samples)
        ]

    def start(self) -> None:
        """Hand the sequences to the engine; a stream's head goes out at once."""
        self._exchange.on_gone = self._gone
        if self.job.stream:
            self._exchange.start_stream()
            self._send_all(self._on_start())
        if self._plan.die_after_tokens == 0:
            self._die()
        else:
            self._scheduler.submit(self.sequences)

    def look_up_prefix(self, sequence: Sequence) -> None:
        """Fill in what the prefix cache knows, at the moment the sequence starts to run."""
        prompt = self.job.prompts[sequence.index // self.job.samples]
        sequence.cached, sequence.created = self._cache.match_and_insert(self.job.cache_salt, prompt.tokens)

    def token(self, sequence: Sequence, text: str) -> None:
        """One more token of a sequence, or its end, or both."""
        if self._done:
            return
        if sequence.finish is not None:
            self._open -= 1
        if not self.job.stream:
            self.texts[sequence.index].append(text)
            if self.job.logprobs is not None and sequence.finish != "abort":
                self.words[sequence.index].append(sequence.word)
        else:
            if not self._opened:
                self._opened = True
                self._send_all(self._on_first_token())
            if sequence.output:
                self._send_all(self._on_token(sequence, text))
        if self._watched:
            self._check_plan()
        if self._open == 0 and not self._done:
            self._complete()

    def usage(self, *, final: bool = True) -> Usage | None:
        """The whole request's counts as they are reported. vLLM names the cached tokens of one sequence
        only: of a stream the first.
        """
        job = self.job
        one = self.sequences[0] if job.stream else self.sequences[-1]
        prompt = sum(len(prompt.tokens) for prompt in job.prompts)
        output = sum(sequence.output for sequence in self.sequences)
        known = one.output > 0
        return lie(
            Usage(prompt, output, one.cached if known else 0, one.created if known else 0),
            self._plan.usage,
            final=final,
        )

    def sequence_usage(self, sequence: Sequence) -> Usage | None:
        """One sequence's counts so far, as each chunk reports them."""
        usage = Usage(sequence.prompt_tokens, sequence.output)
        return usage if self._plan.usage is None else lie(usage, self._plan.usage, final=False)

    def finish_of(self, sequence: Sequence) -> str | None:
        """Why a sequence ended, as far as it is told."""
        return None if self._plan.end_after_tokens is not None else sequence.finish

    # What a route's form of answer adds

    def _on_start(self) -> list[bytes]:
        """Events before any token."""
        return []

    def _on_first_token(self) -> list[bytes]:
        """Events just before the first token's."""
        return []

    @abstractmethod
    def _on_token(self, sequence: Sequence, text: str) -> list[bytes]:
        """The events of one token."""

    @abstractmethod
    def _on_end(self) -> list[bytes]:
        """The events after the last token."""

    @abstractmethod
    def _whole(self) -> dict[str, Any]:
        """The answer, not streamed."""

    # Endings

    def _complete(self) -> None:
        self._done = True
        if self._plan.late_refusal:
            refuse_late(self._exchange, self.job.route)
            return
        if not self.job.stream:
            self._exchange.json(200, self._whole())
            return
        if self._held_event:
            self._exchange.chunk(self._held_event)
        if self._plan.end_after_tokens is None:
            self._send_all(self._on_end())
        self._exchange.end_stream()

    def _gone(self) -> None:
        self._done = True
        self._scheduler.drop(self.sequences, "abort")

    def _check_plan(self) -> None:
        plan = self._plan
        output = sum(sequence.output for sequence in self.sequences)
        if plan.die_after_tokens is not None and output >= plan.die_after_tokens:
            self._die()
        elif plan.end_after_tokens is not None and output >= plan.end_after_tokens:
            self._scheduler.drop(self.sequences, "cut")
            self._complete()

    def _die(self) -> None:
        self._done = True
        self._scheduler.drop(self.sequences, "died")
        loop = asyncio.get_running_loop()
        if self._plan.death == "exit":
            loop.call_later(_FLUSH_S, os._exit, 1)
        else:
            reset = self._plan.death == "reset"
            loop.call_later(_FLUSH_S, lambda: self._exchange.cut(reset=reset))

    # Writing

    def _send_all(self, events: list[bytes]) -> None:
        if self._plan.garbage is None:
            for event in events:
                self._exchange.chunk(event)
        else:
            for event in events:
                self._garble(event)

    def _garble(self, event: bytes) -> None:
        """Say one event twice, or after its successor."""
        self._events += 1
        if self._plan.garbage == "out_of_order" and self._events == _GARBLED_EVENT:
            self._held_event = event
            return
        self._exchange.chunk(event)
        if self._plan.garbage == "duplicate" and self._events == _GARBLED_EVENT:
            self._exchange.chunk(event)
        if self._held_event:
            self._exchange.chunk(self._held_event)
            self._held_event = b""
