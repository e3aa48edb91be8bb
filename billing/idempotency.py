"""The outcome of requests with an `Idempotency-Key`, so that a repeated request changes nothing and gets the
same answer. In SQL.

That a request was carried out is written in the transaction of its change, so it holds exactly when the
change does, whichever process made it. The answer is added once it is known. A refused request changes
nothing and leaves its key free. It knows no HTTP.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from billing.moments import DAY_MS
from billing.refusals import Conflict, Invalid
from billing.schema.catalogue import idempotent_request as table
from billing.schema.clock import NOW_MS
from billing.schema.locks import AdvisoryLock

PARAM: Final = "Idempotency-Key"
KEPT_MS: Final = DAY_MS
# Of one caller.
KEPT_MAX: Final = 200_000
ANSWER_BYTES_MAX: Final = 64 * 1024
# The answer is written milliseconds after the commit. If it is missing after this time, the process has died
# in between.
_LOST_AFTER_MS: Final = 60_000
_FORGOTTEN_AT_ONCE: Final = 10_000


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """A request under a key. `fingerprint` distinguishes it from other requests under the same key."""

    caller: str
    key_hash: str
    fingerprint: str

    @staticmethod
    def of(caller: str, key: str, *parts: bytes) -> "IdempotencyClaim":
        """The key of this caller, and all that makes the request what it is."""
        digest = hashlib.sha256()
        for part in parts:
            digest.update(len(part).to_bytes(8, "big") + part)
        return IdempotencyClaim(caller, hashlib.sha256(key.encode()).hexdigest(), digest.hexdigest())


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The first answer, as it was sent."""

    status: int
    body: bytes


def find_answer(connection: Connection, claim: IdempotencyClaim) -> StoredAnswer | None:
    """The first answer; None if there has been no such request. Raises Invalid if the key was used for
    another request; Conflict while the first one runs, or if its answer is unknown.
    """
    age_ms = (NOW_MS - table.c.created_ms).label("age_ms")
    row = connection.execute(select(table, age_ms).where(*_same(claim))).one_or_none()
    if row is None:
        of_caller = select(table.c.caller).where(table.c.caller == claim.caller).limit(KEPT_MAX + 1)
        if connection.execute(select(func.count()).select_from(of_caller.subquery())).scalar_one() > KEPT_MAX:
            message = (
                f"More than {KEPT_MAX} of your keys of the last day are kept. Send the request without one, "
                "or later."
            )
            raise Conflict(message, param=PARAM, code="too_many_idempotency_keys")
        return None
    if row.fingerprint != claim.fingerprint:
        message = "This key came with another request before. A key belongs to one request: take a new one."
        raise Invalid(message, param=PARAM, code="idempotency_key_reused")
    if row.status is not None:
        return StoredAnswer(row.status, bytes(row.answer))
    if row.age_ms < _LOST_AFTER_MS:
        raise _still_running()
    message = "The request with this key was carried out, but its answer was not kept. Look at what is there."
    raise Conflict(message, param=PARAM, code="idempotency_answer_lost")


def carry_out(connection: Connection, claim: IdempotencyClaim) -> None:
    """Record, in the transaction of the change, that this request is carried out. Raises Conflict if another
    process does that or has done it.
    """
    key = func.hashtext(claim.caller + claim.key_hash)
    free = connection.execute(
        select(func.pg_try_advisory_xact_lock(AdvisoryLock.IDEMPOTENCY, key))
    ).scalar_one()
    row = {"caller": claim.caller, "key_hash": claim.key_hash, "fingerprint": claim.fingerprint}
    written = insert(table).values(row).on_conflict_do_nothing().returning(table.c.caller)
    if not free or connection.execute(written).one_or_none() is None:
        raise _still_running()


def keep_answer(connection: Connection, claim: IdempotencyClaim, answer: StoredAnswer) -> None:
    """Record the answer, also of a request that changed nothing. An answer that is too large is not
    stored.
    """
    if len(answer.body) > ANSWER_BYTES_MAX:
        return
    row = {"caller": claim.caller, "key_hash": claim.key_hash, "fingerprint": claim.fingerprint}
    said = {"status": answer.status, "answer": answer.body}
    known = insert(table).values(row | said)
    connection.execute(
        known.on_conflict_do_update(
            index_elements=["caller", "key_hash"],
            set_=said,
            where=(table.c.fingerprint == claim.fingerprint) & table.c.status.is_(None),
        )
    )


def forget_old(connection: Connection) -> int:
    """Delete what has been stored for long enough, in batches; returns how many were deleted."""
    old = select(table.c.caller, table.c.key_hash).where(table.c.created_ms < NOW_MS - KEPT_MS)
    some = old.order_by(table.c.created_ms).limit(_FORGOTTEN_AT_ONCE).subquery()
    gone = delete(table).where(table.c.caller == some.c.caller, table.c.key_hash == some.c.key_hash)
    return connection.execute(gone).rowcount


def _same(claim: IdempotencyClaim) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.caller == claim.caller, table.c.key_hash == claim.key_hash


def _still_running() -> Conflict:
    message = "The first request with this key is not answered yet. Send it again in a moment."
    return Conflict(message, param=PARAM, code="idempotency_key_in_use")
