"""`Idempotency-Key` on inference: of all requests of a tenant under one key, one is carried out. A later one
gets what became of it.

The key is bound to its request in Redis by one script, before the request is reserved. Whoever comes while
it runs gets 409. Afterwards the answer comes again: an error always, anything else if its tenant has answers
stored (`retain_answers_s`), else 409 with the receipt. A request frees its key if it was not admitted, or if
before its first byte it was refused (4xx) or told to try again (503). A key stays bound if its gateway dies;
the books then say how the request ended. Stored answers are encrypted with the Idempotency-Key, which Redis
does not have.
"""

import asyncio
import hashlib
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec.structs import replace

from billing.cell.asks import IdempotencyAsk, IdempotencyEnd
from billing.cell.replies import (
    KeyClaimed,
    KeyEnded,
    KeyOfAnother,
    KeyRunning,
    TooManyKeys,
    parse_idempotency_claim,
)
from billing.cell.scripts import idempotency_claim_call, idempotency_end_call
from billing.wire import redis_keys
from billing.wire.ending import Ending
from billing.wire.reservation import FIELDS
from gateway.billing_client import BillingClient
from gateway.catalogue.entries import Tenant
from gateway.edge.client import Client
from gateway.errors import (
    IDEMPOTENCY_KEY,
    AlreadyDone,
    ClientDisconnected,
    DependencyUnavailable,
    GatewayError,
    IdempotencyConflict,
    IdempotencyKeyReused,
    InvalidRequest,
    OutcomeUnknown,
    QuotaExceeded,
)
from gateway.exchange import Exchange, Request
from gateway.receipts import find_receipt
from gateway.redis.pipe import RedisPipe, RedisUnavailable
from gateway.request import RouteSpec
from gateway.waiting.refusals import with_jitter

log = logging.getLogger(__name__)

KEY_HEADER: Final = b"idempotency-key"
# New keys of a tenant in a day. A bound key takes about 400 bytes of Redis.
KEYS_PER_DAY_MAX: Final = 1_000_000
# A longer answer is not stored, nor what exceeds this in a day.
ANSWER_BYTES_MAX: Final = 1024 * 1024
ANSWERS_BYTES_PER_DAY_MAX: Final = 256 * 1024 * 1024
ERROR_BYTES_MAX: Final = 64 * 1024
RUNNING_RETRY_MS: Final = 1_000
# For this long a gateway that is not known to be alive may just have started.
_YOUNG_MS: Final = 10_000
_SEND_AGAIN_S: Final = 1.0
_TRIES: Final = 600
_KEY: Final = re.compile(rb"[\x21-\x7e]{1,255}")
_NONCE_BYTES: Final = 12

Serve = Callable[[Request], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The key that came with a request. `fingerprint`: of the request's route and body."""

    text: bytes
    fingerprint: str

    @classmethod
    def of(
        cls, headers: Iterable[tuple[bytes, bytes]], route: RouteSpec, body: bytes
    ) -> "IdempotencyKey | None":
        """None on a route that costs nothing. Raises InvalidRequest."""
        if not route.metered:
            return None
        keys = [value for name, value in headers if name == KEY_HEADER]
        if len(keys) != 1 or _KEY.fullmatch(keys[0]) is None:
            message = f"{IDEMPOTENCY_KEY} is 1 to 255 visible ASCII characters, given once."
            raise InvalidRequest(message, IDEMPOTENCY_KEY)
        # With the key, so that whoever reads Redis cannot try prompts that it guesses.
        digest = hashlib.sha256(b"\0".join((keys[0], route.name.value.encode(), body)))
        return cls(keys[0], digest.hexdigest())

    @property
    def hash(self) -> str:
        """Its name in Redis."""
        return hashlib.sha256(self.text).hexdigest()

    def sealed(self, tenant: str, answer: bytes) -> bytes:
        """The answer as it is stored."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher(tenant).encrypt(nonce, answer, None)

    def opened(self, tenant: str, stored: bytes) -> bytes | None:
        """The answer; None for what was not sealed with this key."""
        try:
            return self._cipher(tenant).decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], None)
        except InvalidTag:
            return None

    def _cipher(self, tenant: str) -> AESGCM:
        return AESGCM(hashlib.sha256(b"taas answer\0" + tenant.encode() + b"\0" + self.text).digest())


class Claim:
    """The request to which a key was bound, until its answer is whole. An error is always kept. `keeps`: so
    is every other answer, to be stored, and the request goes on when its caller leaves. `exchange`: once
    there is one. `failed`: the error that it ends with, `in_stream` if a stream had begun by then.
    """

    __slots__ = ("_bytes_max", "_pieces", "_size", "exchange", "failed", "in_stream", "keeps", "whole")

    def __init__(self, *, keeps: bool) -> None:
        self.keeps = keeps
        self._bytes_max = ANSWER_BYTES_MAX if keeps else ERROR_BYTES_MAX
        self._pieces: list[bytes] = []
        self._size = 0
        self.exchange: Exchange | None = None
        self.failed: GatewayError | None = None
        self.in_stream = False
        # Called when the last piece of the answer is here.
        self.whole: Callable[[], None] | None = None

    def take(self, piece: bytes, more: bool) -> None:
        """The next piece of the answer."""
        if self.keeps or self.failed is not None:
            self._size += len(piece)
            if self._size <= self._bytes_max:
                self._pieces.append(piece)
            else:
                self._pieces.clear()
                self._stop_keeping()
        if not more and self.whole is not None:
            self.whole()

    def _stop_keeping(self) -> None:
        """The answer is too long: nobody will have it if its caller has left."""
        was_kept, self.keeps = self.keeps, False
        exchange = self.exchange
        if was_kept and exchange is not None and exchange.request.client_connection is not None:
            exchange.request.client_connection.on_disconnect(exchange.current_part.on_client_disconnect)

    @property
    def answer(self) -> bytes:
        """All of it; empty if it is too long."""
        return b"".join(self._pieces)

    @property
    def admitted(self) -> bool:
        """Whether the request, at its end, was admitted: then it has a receipt."""
        return self.exchange is not None and self.exchange.current_part.is_over


class Idempotency:
    """The requests with a key of one process."""

    def __init__(self, redis: RedisPipe, billing: BillingClient, gateway_id: str) -> None:
        self._redis = redis
        self._billing = billing
        self._gateway_id = gateway_id
        self._sending: set[asyncio.Task[None]] = set()

    async def run_once(self, key: IdempotencyKey, request: Request, client: Client, serve: Serve) -> None:
        """Serve the request if it is the first under its key; else send its caller what became of that one.
        Raises IdempotencyConflict, IdempotencyKeyReused, QuotaExceeded, DependencyUnavailable,
        UsageUnavailable, and what `serve` raises.
        """
        tenant = request.caller.tenant
        found = await self._claim(key, request)
        if not isinstance(found, KeyClaimed):
            client.headers.append((b"original-request", found.request_id.encode()))
            if isinstance(found, KeyEnded):
                await self._answer_again(key, found, tenant, client)
                return
            raise await self._why_not(found, tenant.tenant)
        claim = Claim(keeps=tenant.retain_answers_s > 0)

        def end() -> None:
            claim.whole = None
            self._end(key, request, claim, answering=client.answering)

        claim.whole = end
        client.copy_to(claim.take)
        try:
            await serve(replace(request, claim=claim))
        except Exception as error:
            claim.failed = error if isinstance(error, GatewayError) else GatewayError()
            claim.in_stream = client.started
            if isinstance(error, ClientDisconnected):
                end()
            raise  # its caller gets the error next
        except BaseException:
            if claim.whole is not None:
                end()
            raise

    async def _claim(
        self, key: IdempotencyKey, request: Request
    ) -> KeyClaimed | KeyRunning | KeyEnded | KeyOfAnother:
        tenant = request.caller.tenant.tenant
        ask = IdempotencyAsk(
            request_id=request.request_id,
            fingerprint=key.fingerprint,
            cell=request.model.cell,
            gateway=self._gateway_id,
            keys_max=KEYS_PER_DAY_MAX,
        )
        try:
            raw = await self._redis.execute(*idempotency_claim_call(tenant, key.hash, ask))
        except RedisUnavailable as exc:
            if exc.unknown_outcome:
                self._send_end(tenant, key, IdempotencyEnd(request_id=request.request_id))
            raise DependencyUnavailable from exc
        found = parse_idempotency_claim(raw)
        if isinstance(found, TooManyKeys):
            message = f"This account has used {KEYS_PER_DAY_MAX} new Idempotency-Keys today."
            raise QuotaExceeded("idempotency_keys", message, found.retry_after_ms)
        return found

    async def _answer_again(
        self, key: IdempotencyKey, found: KeyEnded, tenant: Tenant, client: Client
    ) -> None:
        """Send the answer of the first request once more. Raises AlreadyDone if it is not stored."""
        client.headers.append((b"idempotent-replayed", b"true"))
        ended = orjson.loads(found.ended)
        if "error" in ended:
            never = [(b"x-should-retry", b"false")]
            client.replay(ended["status"], ended["error"].encode(), never, stream=False)
            return
        answer = None
        # What its tenant no longer wants stored is not given out.
        if found.answer and tenant.retain_answers_s:
            answer = key.opened(tenant.tenant, found.answer)
        if answer is None:
            receipt = await find_receipt(self._billing, found.request_id, tenant.tenant)
            raise AlreadyDone(receipt or {"request_id": found.request_id})
        client.replay(200, answer, [], stream=ended["stream"])

    async def _why_not(self, found: KeyRunning | KeyOfAnother, tenant: str) -> GatewayError:
        """The error for a request under the key of one whose end its gateway has not told."""
        if isinstance(found, KeyOfAnother):
            return IdempotencyKeyReused()
        running = IdempotencyConflict()
        running.retry_after_ms = with_jitter(RUNNING_RETRY_MS)
        name = redis_keys.reservation(found.cell, found.request_id)
        try:
            state, lease_ms = await self._redis.execute_many([
                ("HGET", name, FIELDS["state"]), ("HGET", redis_keys.GATEWAYS, found.gateway),
            ])  # fmt: skip
        except RedisUnavailable as exc:
            raise DependencyUnavailable from exc
        alive = lease_ms is not None and int(lease_ms) > found.now_ms
        young = found.now_ms - found.since_ms < _YOUNG_MS
        if state not in {None, b"settled"} or (state is None and (alive or young)):
            return running
        receipt = await find_receipt(self._billing, found.request_id, tenant)
        if receipt is None:
            return OutcomeUnknown(found.request_id)
        if receipt["state"] == "open" or (alive and _end_may_come(receipt, found.now_ms)):
            return running
        return AlreadyDone(receipt)

    def _end(self, key: IdempotencyKey, request: Request, claim: Claim, *, answering: bool) -> None:
        """The caller's answer is whole, or there will be none: tell it, or free the key."""
        tenant, end = request.caller.tenant, IdempotencyEnd(request_id=request.request_id)
        failed, answer = claim.failed, b""
        if claim.admitted and (answering or failed is None or not _may_come_again(failed)):
            ended: dict[str, object] = {"stream": request.parsed.stream}
            if failed is not None and not claim.in_stream and not isinstance(failed, ClientDisconnected):
                ended |= {"status": failed.status, "error": claim.answer.decode()}
            elif claim.keeps and claim.answer:
                answer = key.sealed(tenant.tenant, claim.answer)
                end["answer_ms"] = tenant.retain_answers_s * 1000
                end["bytes_max"] = ANSWERS_BYTES_PER_DAY_MAX
            end["ended"] = orjson.dumps(ended).decode()
        self._send_end(tenant.tenant, key, end, answer)

    def _send_end(self, tenant: str, key: IdempotencyKey, end: IdempotencyEnd, answer: bytes = b"") -> None:
        task = asyncio.create_task(self._until_sent(tenant, key, end, answer), name="idempotency-end")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _until_sent(self, tenant: str, key: IdempotencyKey, end: IdempotencyEnd, answer: bytes) -> None:
        call = idempotency_end_call(tenant, key.hash, end, answer)
        for _ in range(_TRIES):
            try:
                await self._redis.execute(*call)
                return
            except RedisUnavailable:
                await asyncio.sleep(_SEND_AGAIN_S)
        log.error("the end of a request was not told to its key", extra={"request_id": end["request_id"]})

    async def close(self) -> None:
        """Wait until what has ended is told, while Redis answers."""
        until = time.monotonic() + _SEND_AGAIN_S
        while self._sending and self._redis.healthy and time.monotonic() < until:
            await asyncio.wait(self._sending, timeout=_SEND_AGAIN_S)
        for task in self._sending:
            task.cancel()


def _end_may_come(receipt: dict[str, Any], now_ms: int) -> bool:
    """Whether the gateway of a settled request, if it is alive, may still be sending the request's end."""
    if receipt["ending"] == Ending.GATEWAY_DIED.value:
        return False
    ended_ms: int = receipt["ended_ms"]
    return now_ms - ended_ms < _TRIES * _SEND_AGAIN_S * 1000


def _may_come_again(error: GatewayError) -> bool:
    """Whether the error says that the same request may be sent again, or that it was not right: nothing was
    delivered and nothing is billed for it.
    """
    if isinstance(error, ClientDisconnected):
        return False
    return error.status < 500 or (error.status == 503 and error.should_retry is not False)
