"""Routes of evidence: what an auditor may know of an instance, signed; and the key that checks it."""

from typing import Any, Final

from fastapi import APIRouter

from billing.api.answer import Refusal
from billing.api.control import Control
from billing.api.evidence_answers import EvidenceAnswer, EvidenceKey
from billing.api.fields import NamePath
from billing.api.query import KNOWN_QUERY
from billing.api.signing_key import signing_key
from billing.catalogue import models
from billing.contracts import store
from billing.fleet.registered import read_registered
from billing.refusals import Conflict, NotFound
from billing.wire import redis_keys
from billing.wire.evidence import (
    EvidenceError,
    RunningEngine,
    key_id,
    public_pem,
    sign,
)
from billing.wire.instance_entry import InstanceEntry

router = APIRouter(prefix="/admin/v1", tags=["evidence"], dependencies=[KNOWN_QUERY])

# What a worker has not renewed for longer says nothing of now.
_AGE_MS_MAX: Final = 60_000


@router.get(
    "/instances/{instance:path}/evidence", response_model=EvidenceAnswer, responses={409: {"model": Refusal}}
)
def show(instance: NamePath, control: Control) -> dict[str, Any]:
    """Evidence of an instance that a worker runs: weights, command, user, listening addresses, logging, who
    may call it, the contracts of its owner, since when. Signed; `taas evidence verify` checks it offline.
    """
    key = signing_key(control.evidence_key_file)
    entry = next((each for each in read_registered(control.redis) if each.instance == instance), None)
    if entry is None:
        raise NotFound(f"There is no instance {instance!r} now.", param="instance")
    running = _running(control.redis.hget(redis_keys.EVIDENCE, instance), entry)
    with control.reading() as connection:
        now_ms = store.now_ms(connection)
        if now_ms - running.read_ms > _AGE_MS_MAX:
            raise _no_evidence(f"The worker of {instance!r} has not said for a minute what runs there.")
        model = models.find(connection, entry.model)
        owned = model.owner is not None
        contracts = [
            each
            for each in store.list_all(connection, tenant_id=model.owner, pool=model.pool)
            if owned and each.mu_s_at(now_ms) > 0
        ]
    return sign(
        {
            "instance": {
                "instance": entry.instance,
                "model": entry.model,
                "pool": entry.pool,
                "url": entry.url,
                "epoch": entry.epoch,
                "since_ms": running.started_ms,
            },
            "weights": {"sha256": dict(running.weights), "adapters": dict(entry.adapters)},
            "process": {
                "engine": running.engine,
                "engine_version": running.engine_version,
                "command": list(running.command),
                "os_user": running.os_user,
                "own_user": running.own_user,
                "listening": list(running.listening),
            },
            "logging": {
                "requests_logged": running.requests_logged,
                "takes_batches": model.takes_batches or not owned,
            },
            "callers": {
                "owner": model.owner,
                "visible_to": model.visible if isinstance(model.visible, str) else sorted(model.visible),
                "status": model.status,
            },
            "contracts": [
                {
                    "contract": each.contract_id,
                    "tenant": each.terms.tenant_id,
                    "starts_ms": each.terms.starts_ms,
                    "ends_ms": each.effective_end_ms,
                }
                for each in contracts
            ],
            "issued": {"at_ms": now_ms, "read_ms": running.read_ms},
        },
        key,
    )


@router.get("/evidence-key", response_model=EvidenceKey, responses={409: {"model": Refusal}})
def show_key(control: Control) -> dict[str, Any]:
    """The public key that checks evidence, to be published."""
    key = signing_key(control.evidence_key_file)
    return {"key": key_id(key.public_key()), "public_key": public_pem(key)}


def _running(raw: bytes | str | None, entry: InstanceEntry) -> RunningEngine:
    if raw is not None:
        try:
            running = RunningEngine.from_json(raw)
        except EvidenceError:
            running = None
        if running is not None and running.epoch == entry.epoch:
            return running
    raise _no_evidence(
        f"Nothing is known of the process behind {entry.instance!r}: `taas worker` says what it runs, once "
        "its engine is ready."
    )


def _no_evidence(message: str) -> Conflict:
    return Conflict(message, code="no_evidence")
