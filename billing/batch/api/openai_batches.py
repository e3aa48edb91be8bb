"""The routes of batches, as OpenAI has them."""

from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from sqlalchemy import Connection, Row

from billing import batches
from billing.batch import batch_rows, file_rows
from billing.batch.api.asking import caller_of, expires_s_of, id_of, json_of, number_of, service_of, text_of
from billing.batch.api.once import Once
from billing.batch.batch_rows import NewBatch
from billing.batch.refusals import NotThere, Refused
from billing.wire.batch_caller import BatchCaller
from billing.wire.routes import ROUTE_FACTS, Dialect, RouteFacts

router = APIRouter()

_FIELDS: Final = frozenset(
    {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
)
_ENDPOINTS: Final[dict[str, RouteFacts]] = {
    facts.path: facts for facts in ROUTE_FACTS.values() if facts.metered and facts.dialect is Dialect.OPENAI
}
_LIST_DEFAULT: Final = 20
_LIST_MAX: Final = 100
_METADATA_MAX: Final = 16
_METADATA_NAME_MAX: Final = 64
_METADATA_VALUE_MAX: Final = 512
# Status → the member that says when it was reached.
_WHEN: Final = {
    "in_progress": "in_progress_at", "finalizing": "finalizing_at", "completed": "completed_at",
    "failed": "failed_at", "expired": "expired_at", "cancelling": "cancelling_at",
    "cancelled": "cancelled_at",
}  # fmt: skip


@router.post("/v1/batches", response_model=None)
async def create(request: Request) -> dict[str, Any] | JSONResponse:
    """Its lines are read right afterwards; what is wrong with them is in the batch's `errors`."""
    service, caller = service_of(request), caller_of(request)
    once = Once(request, service, caller)
    body = await json_of(request, _FIELDS)
    once.tell(orjson.dumps(body, option=orjson.OPT_SORT_KEYS))
    if (known := await once.answer()) is not None:
        return known
    new = _new_batch(body, service.settings.window_s)

    def carry_out() -> dict[str, Any]:
        with service.engine.begin() as connection:
            return once.create(connection, lambda: _create(connection, caller, new))

    return await run_in_threadpool(carry_out)


def _create(connection: Connection, caller: BatchCaller, new: NewBatch) -> dict[str, Any]:
    try:
        found = file_rows.find(connection, caller, new.input_file)
    except NotThere as exc:
        raise Refused("There is no such file.", "input_file_id", "file_not_found") from exc
    if found.purpose != "batch":
        raise Refused("The file must have the purpose 'batch'.", "input_file_id")
    batch_id = batch_rows.create(connection, caller, new)
    return shown(batch_rows.find(connection, caller, Dialect.OPENAI, batch_id))


@router.get("/v1/batches")
def list_all(request: Request) -> dict[str, Any]:
    service, caller = service_of(request), caller_of(request)
    limit = number_of(request, "limit", _LIST_DEFAULT, _LIST_MAX)
    with service.engine.connect() as connection:
        rows = batch_rows.list_page(
            connection, caller, Dialect.OPENAI, limit=limit, after=id_of(request, "after")
        )
    page = [shown(row) for row in rows[:limit]]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
    return {"object": "list", "data": page, "has_more": len(rows) > limit} | ends


@router.get("/v1/batches/{batch_id}")
def show(batch_id: str, request: Request) -> dict[str, Any]:
    service, caller = service_of(request), caller_of(request)
    with service.engine.connect() as connection:
        return shown(batch_rows.find(connection, caller, Dialect.OPENAI, batch_id))


@router.post("/v1/batches/{batch_id}/cancel")
def cancel(batch_id: str, request: Request) -> dict[str, Any]:
    service, caller = service_of(request), caller_of(request)
    with service.engine.begin() as connection:
        batch_rows.find(connection, caller, Dialect.OPENAI, batch_id)
        return shown(batches.cancel(connection, batch_id))


def shown(row: Row[Any]) -> dict[str, Any]:
    """A batch as OpenAI's batch object."""
    times = {member: _seconds(row.times.get(status)) for status, member in _WHEN.items()}
    failed = row.failed + row.unserved
    usage = {
        "input_tokens": row.input_tokens,
        "input_tokens_details": {"cached_tokens": row.cached_tokens},
        "output_tokens": row.output_tokens,
        "output_tokens_details": {"reasoning_tokens": row.reasoning_tokens},
        "total_tokens": row.input_tokens + row.output_tokens,
    }
    return {
        "id": row.batch_id,
        "object": "batch",
        "endpoint": next(facts.path for facts in _ENDPOINTS.values() if facts.name.value == row.route),
        "model": row.model,
        "errors": None if row.errors is None else {"object": "list", "data": row.errors},
        "input_file_id": row.input_file,
        "completion_window": "24h",
        "status": row.status,
        "output_file_id": row.output_file,
        "error_file_id": row.error_file,
        "created_at": row.created_ms // 1000,
        "expires_at": row.expires_ms // 1000,
        **times,
        "request_counts": {"total": row.total, "completed": row.completed, "failed": failed},
        "usage": usage,
        "metadata": row.metadata,
    }


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000


def _new_batch(body: dict[str, Any], window_s: int) -> NewBatch:
    endpoint = text_of(body, "endpoint")
    facts = _ENDPOINTS.get(endpoint)
    if facts is None:
        known = ", ".join(_ENDPOINTS)
        raise Refused(f"'endpoint' must be one of {known}.", "endpoint")
    if text_of(body, "completion_window") != "24h":
        raise Refused("'completion_window' must be 24h.", "completion_window")
    after = body.get("output_expires_after")
    if after is not None and not isinstance(after, dict):
        raise Refused("'output_expires_after' must be an object.", "output_expires_after")
    expires_s = after and expires_s_of(after.get("anchor"), after.get("seconds"), "output_expires_after")
    return NewBatch(
        dialect=Dialect.OPENAI,
        input_file=text_of(body, "input_file_id"),
        route=facts.name,
        window_s=window_s,
        metadata=_metadata(body.get("metadata")),
        output_expires_s=expires_s or None,
    )


def _metadata(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    ok = isinstance(given, dict) and len(given) <= _METADATA_MAX
    if ok:
        ok = all(
            isinstance(value, str)
            and len(name) <= _METADATA_NAME_MAX
            and len(value) <= _METADATA_VALUE_MAX
            and "\x00" not in name + value
            for name, value in given.items()
        )
    if not ok:
        raise Refused(
            f"'metadata' has at most {_METADATA_MAX} pairs of texts: names of up to {_METADATA_NAME_MAX} "
            f"characters, values of up to {_METADATA_VALUE_MAX}.",
            "metadata",
        )
    return dict(given)
