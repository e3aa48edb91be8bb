"""Sends a reserved request to an engine, passes the answer on to the caller, and settles the request once, at
whichever ending it meets.

Nothing is sent to the caller before the engine has answered. So if an engine fails before its first token,
the request is tried on another instance, on the same reservation. After the first byte the stream is resumed
on another instance, if its text can carry it (`gateway.resume`); else a failure becomes one error event in
the stream. Each ending is recorded where it happens. A GatewayError is raised only while nothing of this
exchange has been sent; earlier parts of a resumed request may have sent something.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from billing.wire.ending import Ending
from billing.wire.instance_entry import InstanceEntry
from gateway.attempt_failed import (
    BREAKER_OPEN,
    NO_FAILURES,
    REFUSED_US,
    UNSUPPORTED,
    AttemptFailed,
    failed_with,
)
from gateway.edge.client import Client
from gateway.errors import (
    EngineFailed,
    EngineRefused,
    NoInstance,
    Overloaded,
    UnsupportedParameter,
    UpstreamProtocolError,
    error_of,
)
from gateway.exchange import Exchange
from gateway.failover import DIED, Interrupted, failure_of, may_fail_over, may_move
from gateway.quarantine import Quarantine
from gateway.route import route
from gateway.stream.meter import InvalidToolCall, ProtocolViolation
from gateway.stream.meter_plain import PlainMeter
from gateway.upstream.adapters import adapter_of
from gateway.upstream.connection import UpstreamConnection, UpstreamError, UpstreamFailure
from gateway.upstream.engines import Engines

log = logging.getLogger(__name__)

# The requests of an engine that died do not arrive on another one in the same moment.
RETRY_JITTER_S = 0.05
ERROR_BODY_BYTES_MAX = 64 * 1024
NO_INSTANCE_RETRY_MS = 1000
# After its last event an engine sends nothing but the end of the framing.
FRAMING_SECONDS_MAX = 1.0
DONE = b"data: [DONE]\n\n"
CALLER_GONE = frozenset({Ending.CLIENT_DISCONNECT, Ending.CLIENT_STALLED})


# Synchronous: when it returns the settle has been sent, so that no cancellation can come between.
Settle = Callable[[Exchange, Ending, int], None]


def _broke_protocol() -> AttemptFailed:
    return AttemptFailed(UpstreamProtocolError(), "protocol")


class Forwarder:
    """Forwards the exchanges of one process."""

    def __init__(
        self,
        *,
        engines: Engines,
        serving: Callable[[str, str], Collection[InstanceEntry]],
        cache_salt: Callable[[str], str],
        settle: Settle,
        upstream_failed: Callable[[str, str], None],
        quarantine: Quarantine,
    ) -> None:
        self._engines = engines
        self._serving = serving
        self._cache_salt = cache_salt
        self._settle = settle
        self._upstream_failed = upstream_failed
        self._quarantine = quarantine

    async def forward(self, exchange: Exchange, client: Client) -> None:
        """Forward the answer from the engine to the caller, and settle. If it raises anything but
        Interrupted, the caller of this method settles; it raises GatewayError only while nothing of this
        exchange has been sent.
        """
        self._engines.opened(exchange.attempt.instance)
        exchange.sent()
        try:
            exchange.on_stop = lambda: self._stop(exchange)
            await self._attempt_instances(exchange, client)
        finally:
            # breaks the reference cycle with the exchange, which would wait for the garbage collector
            exchange.on_stop = None
            self._release(exchange)

    def _stop(self, exchange: Exchange) -> None:
        """Make the engine stop. A provider says what a request cost at the end of its answer alone: if only
        its caller is gone, the answer is read on.
        """
        attempt = exchange.attempt
        if attempt.instance.is_provider and exchange.stop_ending in CALLER_GONE:
            self._engines.read_on(attempt)
        else:
            self._engines.abort(attempt)

    async def _attempt_instances(self, exchange: Exchange, client: Client) -> None:
        while True:
            try:
                connection = await self._open(exchange)
                if exchange.parsed.stream:
                    await self._pass_stream(exchange, connection, client)
                else:
                    await self._pass_whole(exchange, connection, client)
                return
            except AttemptFailed as failed:
                if failed.kind in NO_FAILURES:
                    exchange.tried[exchange.attempt.instance.instance] = False
                else:
                    self._note_failure(exchange, failed)
                    if may_move(exchange):
                        await asyncio.sleep(random.uniform(0, RETRY_JITTER_S))  # noqa: S311
                if exchange.stop_ending is not None:
                    raise error_of(exchange.stop_ending) from failed
                if not self._move_to_another_instance(exchange):
                    raise failed.error from failed

    def _note_failure(self, exchange: Exchange, failed: AttemptFailed) -> None:
        self._mark_failed(exchange, failed)
        log.log(
            logging.ERROR if failed.kind == REFUSED_US else logging.WARNING,
            failed.says,
            extra={
                "request_id": exchange.request_id,
                "instance": exchange.attempt.instance.instance,
                "kind": failed.kind,
            },
        )

    def _move_to_another_instance(self, exchange: Exchange) -> bool:
        """Begin an attempt on another instance, on the same reservation. Returns False if no instance is
        left.
        """
        if not may_move(exchange):
            return False
        offered_as = exchange.parsed.route.facts.offered_as
        instances = self._serving(exchange.request.model.name, offered_as)
        chosen = route(
            instances, self._engines.open_here, self._engines.breakers, time.monotonic(), exchange.tried
        )
        if chosen is None:
            return False
        self._release(exchange)
        exchange.move_to(chosen)
        self._engines.opened(chosen)
        exchange.sent()
        return True

    def _mark_failed(self, exchange: Exchange, failed: AttemptFailed | str) -> None:
        """Count a failure of the instance, and avoid it: for this request for good, for others a while.
        `failed`: what the attempt raised, or the kind of failure.
        """
        kind = failed if isinstance(failed, str) else failed.kind
        instance = exchange.attempt.instance
        # No request kills a provider, which closes connections for reasons of its own.
        died = exchange.tried[instance.instance] = kind in DIED and not instance.is_provider
        if died:
            self._quarantine.died_with(exchange)
        breakers, now = self._engines.breakers, time.monotonic()
        if kind == REFUSED_US:
            breakers.refused(instance, now)
        elif not isinstance(failed, str) and failed.limited:
            failed.error = Overloaded(int(breakers.limited(instance, now, failed.retry_after_s) * 1000))
        else:
            breakers.failed(instance, now)
        self._upstream_failed(instance.instance, kind)

    def _release(self, exchange: Exchange) -> None:
        """End the attempt: return its connection to the pool, which closes it if it cannot be used again."""
        attempt = exchange.attempt
        attempt.end()
        self._engines.forget(attempt)
        self._engines.closed(attempt.instance)
        if self._engines.breakers.troubled and attempt.started_at:  # it was let through
            well = attempt.meter.finished and not attempt.meter.failed
            self._engines.breakers.ended(attempt.instance, well=well)
        if exchange.choice is not None:
            exchange.choice.ended(attempt.meter.output_tokens())
        if attempt.connection is not None:
            self._engines.pool(attempt.instance).release(attempt.connection)
            attempt.connection = None

    async def _open(self, exchange: Exchange) -> UpstreamConnection:
        """Send the request and wait for a good head. If the engine had closed an idle connection, that is no
        failure: the request is sent again on another connection.
        """
        attempt, breakers = exchange.attempt, self._engines.breakers
        pool = self._engines.pool(attempt.instance)
        request = self._request_bytes(exchange)
        if breakers.troubled and not breakers.lets_through(attempt.instance, time.monotonic()):
            error = breakers.error([attempt.instance], time.monotonic())
            raise AttemptFailed(error or NoInstance(NO_INSTANCE_RETRY_MS), BREAKER_OPEN)
        attempt.started_at = time.monotonic()
        exchange.delivery.sent_at = exchange.delivery.sent_at or attempt.started_at
        while True:
            reused = False
            attempt.connection = None
            try:
                connection, reused = await pool.acquire()
                attempt.connection = connection
                if exchange.stop_ending is not None:  # nothing was sent, so there is nothing to abort
                    raise error_of(exchange.stop_ending)
                attempt.in_engine = True
                connection.send(request)
                if exchange.preempted and attempt.instance.abort:  # preempted before it was sent
                    self._engines.abort(attempt)
                status = await connection.head()
            except UpstreamError as exc:
                if attempt.connection is not None:
                    attempt.connection.close()
                aged = reused and exc.kind is UpstreamFailure.CLOSED_BEFORE_HEAD
                if aged and not attempt.timed_out and exchange.stop_ending is None:
                    continue
                if exc.kind is UpstreamFailure.PROTOCOL:
                    raise _broke_protocol() from exc
                kind = "timeout" if attempt.timed_out else exc.kind.value
                raise AttemptFailed(NoInstance(NO_INSTANCE_RETRY_MS), kind) from exc
            if status == 200:
                attempt.answered = True
                if breakers.troubled:
                    breakers.answered(attempt.instance)
                self._check_head(exchange, connection)
                return connection
            await self._raise_refusal(exchange, connection, status)

    def _request_bytes(self, exchange: Exchange) -> bytes:
        """The request for this instance. Another instance may be another engine, or have another name for
        the model. Raises AttemptFailed if it does not know a parameter, because another may.
        """
        instance, choice = exchange.attempt.instance, exchange.choice
        try:
            call = adapter_of(instance).request(
                exchange.parsed,
                instance,
                request_id=exchange.request_id,
                engine_model=exchange.engine_model,
                cache_salt=self._cache_salt(exchange.request.caller.tenant.tenant),
                default_max_tokens=exchange.request.model.default_max_tokens,
                class_=exchange.head.class_,
                cached_prompt=choice.prompt_text() if instance.cache_events and choice is not None else None,
            )
        except UnsupportedParameter as exc:
            raise AttemptFailed(exc, UNSUPPORTED) from exc
        return self._engines.pool(instance).request_bytes(call.path, call.headers, call.body)

    @staticmethod
    def _check_head(exchange: Exchange, connection: UpstreamConnection) -> None:
        wanted = b"text/event-stream" if exchange.parsed.stream else b"application/json"
        if not connection.content_type.startswith(wanted) or connection.content_encoding not in {
            b"",
            b"identity",
        }:
            connection.close()
            raise _broke_protocol()

    async def _raise_refusal(self, exchange: Exchange, connection: UpstreamConnection, status: int) -> None:
        body = bytearray()

        def take(piece: bytes) -> bool:
            body.extend(piece)
            return len(body) >= ERROR_BODY_BYTES_MAX

        try:
            await connection.read(take)
        except UpstreamError:
            connection.close()
        if exchange.attempt.instance.is_provider:
            exchange.attempt.in_engine = False  # what it refuses costs nothing
        error = adapter_of(exchange.attempt.instance).refusal(
            status, bytes(body), exchange.parsed.route, exchange.engine_model
        )
        if (failed := failed_with(status, connection.retry_after, error, time.time())) is not None:
            raise failed
        self._engines.breakers.succeeded(exchange.attempt.instance)  # it works, and refuses the request
        raise error

    async def _pass_stream(self, exchange: Exchange, connection: UpstreamConnection, client: Client) -> None:
        """The pieces go from the engine's connection to the caller's as they arrive; this task sleeps until
        the end.
        """
        meter = exchange.attempt.meter
        rewrite = exchange.begin_stream()
        last = b""

        def take(chunk: bytes) -> bool:
            nonlocal last
            passed = meter.feed(chunk)
            if passed and rewrite is not None:
                passed = rewrite(passed)
            if meter.finished:
                last = passed
            elif passed and exchange.stop_ending is None:
                is_behind = client.send(passed)
                exchange.mark_delivered()
                if is_behind:
                    connection.pause()
                    client.connection.on_drained(connection.resume)
            return meter.finished or meter.failed

        try:
            await connection.read(take)
            if not (meter.finished or meter.failed):
                # what is left unfinished may be garbage rather than a stream cut short
                meter.feed(b"\n\n")
                raise UpstreamError(UpstreamFailure.CLOSED_IN_BODY)
        except (UpstreamError, ProtocolViolation) as exc:
            connection.close()
            self._on_broken_answer(exchange, client, exc)
            return
        await self._finish_stream(exchange, connection, client, last)

    async def _finish_stream(
        self, exchange: Exchange, connection: UpstreamConnection, client: Client, last: bytes
    ) -> None:
        meter = exchange.attempt.meter
        interrupted: Interrupted | None = None
        if exchange.stop_ending is not None:
            self._end_stopped(exchange, client)
        elif meter.aborted and exchange.preempted:
            interrupted = Interrupted(Ending.PREEMPTED)
            self._flush_tail(exchange, client, last)
        elif meter.failed or meter.aborted:
            if not client.answering:
                raise failure_of(exchange)
            self._mark_failed(exchange, "engine_error")
            if not may_fail_over(exchange):
                self._end(exchange, client, Ending.ENGINE_ERROR)
            else:
                interrupted = Interrupted(Ending.ENGINE_ERROR)
                if meter.aborted:
                    self._flush_tail(exchange, client, last)
        else:
            self._complete(exchange)
            self._engines.progress.first_token(exchange.attempt, exchange.delivery.first_token_at)
            client.end(last)
        await self._finish_framing(connection, failed=meter.failed)
        if interrupted is None:
            return
        if exchange.stop_ending is None:
            raise interrupted
        self._end_stopped(exchange, client)

    @staticmethod
    def _flush_tail(exchange: Exchange, client: Client, last: bytes) -> None:
        """Flush the text that came with the abort of a stream that is to be resumed, so that the resumed part
        continues exactly where the caller's text ends. `next_part` rejects other output later.
        """
        with suppress(ValueError):
            last = last.removesuffix(DONE) + exchange.closing_text()
            if last:
                client.send(last)
                exchange.mark_delivered()

    @staticmethod
    async def _finish_framing(connection: UpstreamConnection, *, failed: bool) -> None:
        if connection.closed or failed:
            connection.close()
            return
        try:
            if not connection.reusable:  # the end of the framing has not come yet
                async with asyncio.timeout(FRAMING_SECONDS_MAX):
                    await connection.read(lambda _: False)
        except (UpstreamError, TimeoutError):
            connection.close()

    def _on_broken_answer(
        self, exchange: Exchange, client: Client, cause: UpstreamError | ProtocolViolation
    ) -> None:
        """The answer was cut off or malformed. Before the first byte another instance may be tried; after it
        a stream that was cut off is resumed elsewhere if it can be, else it ends with an error event.
        """
        if exchange.stop_ending is not None:
            if exchange.stop_ending is Ending.DEADLINE:  # it did not answer the abort either
                self._mark_failed(exchange, "timeout")
            self._end_stopped(exchange, client)
            return
        if isinstance(cause, InvalidToolCall):
            refused = EngineRefused("The model's tool call was not an object.", "tools", "invalid_tool_call")
            if not client.answering:
                raise refused from cause
            self._settle(exchange, Ending.ENGINE_ERROR, 200)
            client.end_with_error(refused)
            return
        broken_protocol = isinstance(cause, ProtocolViolation) or cause.kind is UpstreamFailure.PROTOCOL
        if not client.answering:
            if broken_protocol:
                log.error(
                    "engine broke its protocol", extra={"request_id": exchange.request_id, "rule": str(cause)}
                )
                raise _broke_protocol() from cause
            kind = "timeout" if exchange.attempt.timed_out else str(cause)
            raise AttemptFailed(NoInstance(NO_INSTANCE_RETRY_MS), kind) from cause
        kind = "protocol" if broken_protocol else "timeout" if exchange.attempt.timed_out else str(cause)
        self._mark_failed(exchange, kind)
        log.error("engine broke a stream off", extra={"request_id": exchange.request_id, "cause": kind})
        if not broken_protocol and may_fail_over(exchange):
            raise Interrupted(Ending.ENGINE_DIED) from cause
        self._end(exchange, client, Ending.PROTOCOL_ERROR if broken_protocol else Ending.ENGINE_DIED)

    def _end_stopped(self, exchange: Exchange, client: Client) -> None:
        """End a request that was stopped, after the engine's answer has been read to its end."""
        assert exchange.stop_ending is not None
        if not client.started:
            raise error_of(exchange.stop_ending)
        self._end(exchange, client, exchange.stop_ending)

    def _end(self, exchange: Exchange, client: Client, ending: Ending) -> None:
        """End a stream that has started with an error."""
        self._settle(exchange, ending, 200)
        client.end_with_error(error_of(ending))

    async def _pass_whole(self, exchange: Exchange, connection: UpstreamConnection, client: Client) -> None:
        meter = exchange.attempt.meter
        assert isinstance(meter, PlainMeter)
        try:
            await connection.read(lambda piece: bool(meter.feed(piece)))  # it passes nothing on
            answer = meter.close()
        except (UpstreamError, ProtocolViolation) as exc:
            connection.close()
            self._on_broken_answer(exchange, client, exc)
            return
        if exchange.stop_ending is not None:
            if not exchange.attempt.instance.is_provider:
                meter.distrust()
            self._end_stopped(exchange, client)
            return
        if meter.failed or meter.aborted:
            raise EngineFailed
        self._complete(exchange)
        client.send_json(answer)

    def _complete(self, exchange: Exchange) -> None:
        exchange.mark_delivered()
        self._settle(exchange, Ending.COMPLETE, 200)
        self._quarantine.answered(exchange)
