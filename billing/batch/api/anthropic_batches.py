"""The routes of message batches, as Anthropic has them. The body is stored while it comes, then read; the
batch is there once all its requests are right.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import Connection, Row

from billing import batches
from billing.batch import batch_rows, file_rows, reading
from billing.batch.acceptance import NotAccepted
from billing.batch.api.asking import caller_of, id_of, number_of, service_of
from billing.batch.api.files import Stored, streamed
from billing.batch.api.once import Once
from billing.batch.batch_rows import NewBatch
from billing.batch.file_rows import NewFile
from billing.batch.refusals import NO_BATCH, NotThere, Refused
from billing.batch.service import Service
from billing.batch.settings import BatchSettings
from billing.batch.splitting import NotRequests
from billing.batch.validation import Checked, LineError
from billing.wire.batch_caller import BatchCaller
from billing.wire.routes import Dialect, Route

router = APIRouter(prefix="/v1/messages/batches")

_LIST_DEFAULT: Final = 20
_LIST_MAX: Final = 1_000


@router.post("", response_model=None)
async def create(request: Request) -> dict[str, Any] | JSONResponse:
    """Refused as a whole if any request is wrong."""
    service, caller = service_of(request), caller_of(request)
    once = Once(request, service, caller)
    stored = Stored(service, caller, "requests")
    await stored.begin()
    try:
        await stored.put(once.told(_pieces(request)))
        if (known := await once.answer()) is not None:
            await stored.give_up()
            return known
        return await run_in_threadpool(_create, service, caller, stored, once)
    except BaseException:
        await stored.give_up()
        raise


@router.get("")
def list_all(request: Request) -> dict[str, Any]:
    service, caller = service_of(request), caller_of(request)
    limit = number_of(request, "limit", _LIST_DEFAULT, _LIST_MAX)
    before = id_of(request, "before_id")
    with service.engine.connect() as connection:
        rows = batch_rows.list_page(
            connection,
            caller,
            Dialect.ANTHROPIC,
            limit=limit,
            after=id_of(request, "after_id"),
            before=before,
        )
    page = [shown(row) for row in rows[:limit]]
    if before is not None:
        page.reverse()
    ends = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"data": page, "has_more": len(rows) > limit, "first_id": ends[0], "last_id": ends[1]}


@router.get("/{batch_id}")
def show(batch_id: str, request: Request) -> dict[str, Any]:
    service, caller = service_of(request), caller_of(request)
    with service.engine.connect() as connection:
        return shown(batch_rows.find(connection, caller, Dialect.ANTHROPIC, batch_id))


@router.get("/{batch_id}/results")
def results(batch_id: str, request: Request) -> StreamingResponse:
    """What succeeded, then what did not, once the batch has ended."""
    service, caller = service_of(request), caller_of(request)
    with service.engine.connect() as connection:
        row = batch_rows.find(connection, caller, Dialect.ANTHROPIC, batch_id)
        if _ended_ms(row) is None:
            raise Refused("This batch has not ended: it has no results yet.", code="batch_not_ended")
        files = file_rows.results_of(connection, batch_id)
        if not files:
            raise NotThere(NO_BATCH)
        names = [name for file in files for name in file_rows.objects_of(connection, file)]
    return streamed(service, names, sum(file.bytes for file in files), "application/x-jsonl")


@router.post("/{batch_id}/cancel")
def cancel(batch_id: str, request: Request) -> dict[str, Any]:
    service, caller = service_of(request), caller_of(request)
    with service.engine.begin() as connection:
        batch_rows.find(connection, caller, Dialect.ANTHROPIC, batch_id)
        return shown(batches.cancel(connection, batch_id))


@router.delete("/{batch_id}")
def delete(batch_id: str, request: Request) -> dict[str, Any]:
    service, caller = service_of(request), caller_of(request)
    with service.engine.begin() as connection:
        batch_rows.delete(connection, caller, Dialect.ANTHROPIC, batch_id)
    return {"id": batch_id, "type": "message_batch_deleted"}


def shown(row: Row[Any]) -> dict[str, Any]:
    """A batch as Anthropic's message batch. Its counts but `processing` are 0 until it has ended. The URL of
    its results is a path: the host is the one that the caller knows.
    """
    ended_ms = _ended_ms(row)
    expired = row.outcome == "expired"
    counts = {
        "processing": row.total if ended_ms is None else 0,
        "succeeded": row.completed if ended_ms is not None else 0,
        "errored": row.failed if ended_ms is not None else 0,
        "canceled": 0 if expired or ended_ms is None else row.unserved,
        "expired": row.unserved if expired and ended_ms is not None else 0,
    }
    canceling = row.status == "cancelling"
    return {
        "id": row.batch_id,
        "type": "message_batch",
        "processing_status": "ended" if ended_ms is not None else "canceling" if canceling else "in_progress",
        "request_counts": counts,
        "created_at": _moment(row.created_ms),
        "expires_at": _moment(row.expires_ms),
        "ended_at": _moment(ended_ms),
        "cancel_initiated_at": _moment(row.times.get("cancelling")),
        "archived_at": None,
        "results_url": None if ended_ms is None else f"/v1/messages/batches/{row.batch_id}/results",
    }


def _create(service: Service, caller: BatchCaller, stored: Stored, once: Once) -> dict[str, Any]:
    """The batch and its lines, in one transaction: it is there as a whole or not at all."""
    settings = service.settings
    try:
        checked = reading.read_input(service.objects, settings, stored.file_id, Route.MESSAGES)
    except NotRequests:
        raise Refused('The body must be {"requests": [{"custom_id": …, "params": {…}}, …]}.') from None
    if checked.errors:
        raise _refusal(checked.errors[0])
    new = NewBatch(
        dialect=Dialect.ANTHROPIC,
        input_file=stored.file_id,
        route=Route.MESSAGES,
        window_s=settings.window_s,
    )
    with service.engine.begin() as connection:
        return once.create(connection, lambda: _begin(connection, settings, caller, stored, new, checked))


def _begin(
    connection: Connection,
    settings: BatchSettings,
    caller: BatchCaller,
    stored: Stored,
    new: NewBatch,
    checked: Checked,
) -> dict[str, Any]:
    kept = NewFile("requests", "", settings.retention_s)
    file_rows.finish_upload(connection, stored.file_id, stored.size_bytes, kept)
    batch_id = batch_rows.create(connection, caller, new)
    row = batch_rows.find(connection, caller, Dialect.ANTHROPIC, batch_id)
    try:
        reading.begin(connection, row, checked, settings)
    except NotAccepted as refused:
        raise _refusal(refused.error) from refused
    return shown(batch_rows.find(connection, caller, Dialect.ANTHROPIC, batch_id))


def _refusal(error: LineError) -> Refused:
    if error.code == "model_not_found":
        return NotThere(error.message, error.param, error.code)
    where = f"requests.{error.line - 1}: " if error.line is not None else ""
    return Refused(where + error.message, error.param, error.code)


def _ended_ms(row: Row[Any]) -> int | None:
    return next(
        (row.times[status] for status in ("completed", "expired", "cancelled") if status in row.times), None
    )


def _moment(at_ms: int | None) -> str | None:
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    async for piece in request.stream():
        if piece:
            yield piece
