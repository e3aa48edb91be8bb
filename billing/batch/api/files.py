"""The routes of files, as OpenAI has them."""

from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import Connection, Row

from billing.batch import file_rows
from billing.batch.api.asking import caller_of, expires_s_of, id_of, number_of, service_of
from billing.batch.api.once import Once
from billing.batch.file_rows import NewFile
from billing.batch.multipart import FormReader, NotAForm
from billing.batch.objects import input_object
from billing.batch.refusals import Refused, TooLarge
from billing.batch.service import Service
from billing.wire.batch_caller import BatchCaller

router = APIRouter()

_FILENAME_CHARS_MAX: Final = 256
_FIELDS: Final = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})
_LIST_MAX: Final = 10_000


@router.post("/v1/files", response_model=None)
async def upload(request: Request) -> dict[str, Any] | JSONResponse:
    """Store what comes while it comes."""
    service, caller = service_of(request), caller_of(request)
    once = Once(request, service, caller)
    try:
        reader = FormReader(request.headers.get("content-type", ""))
    except NotAForm:
        raise Refused("The body must be multipart/form-data with a 'file' and a 'purpose'.") from None
    stored = Stored(service, caller, "batch")
    await stored.begin()
    try:
        await stored.put(once.told(_file_pieces(request, reader)))
        new = _new_file(reader, service)
        # The boundary of a form is another one each time, so the form itself tells nothing.
        once.tell(f"{new.purpose} {new.expires_s} {new.filename}".encode())
        if (known := await once.answer()) is not None:
            await stored.give_up()
            return known
        return await stored.finish(new, once)
    except BaseException:
        await stored.give_up()
        raise


@router.get("/v1/files")
def list_all(request: Request) -> dict[str, Any]:
    service, caller = service_of(request), caller_of(request)
    limit = number_of(request, "limit", _LIST_MAX, _LIST_MAX)
    order = request.query_params.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise Refused("'order' must be asc or desc.", "order")
    with service.engine.connect() as connection:
        rows = file_rows.list_page(
            connection, caller, purpose=id_of(request, "purpose"), after=id_of(request, "after"),
            limit=limit, ascending=order == "asc",
        )  # fmt: skip
    page = rows[:limit]
    ends = {"first_id": page[0].file_id, "last_id": page[-1].file_id} if page else {}
    data = [shown(row) for row in page]
    return {"object": "list", "data": data, "has_more": len(rows) > limit} | ends


@router.get("/v1/files/{file_id}")
def show(file_id: str, request: Request) -> dict[str, Any]:
    service, caller = service_of(request), caller_of(request)
    with service.engine.connect() as connection:
        return shown(file_rows.find(connection, caller, file_id))


@router.get("/v1/files/{file_id}/content")
def content(file_id: str, request: Request) -> StreamingResponse:
    service, caller = service_of(request), caller_of(request)
    with service.engine.connect() as connection:
        row = file_rows.find(connection, caller, file_id)
        names = file_rows.objects_of(connection, row)
    return streamed(service, names, row.bytes)


@router.delete("/v1/files/{file_id}")
def delete(file_id: str, request: Request) -> dict[str, Any]:
    service, caller = service_of(request), caller_of(request)
    with service.engine.begin() as connection:
        file_rows.delete(connection, caller, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def shown(row: Row[Any]) -> dict[str, Any]:
    """A file as OpenAI's file object."""
    return {
        "id": row.file_id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": row.created_ms // 1000,
        "expires_at": row.expires_ms // 1000,
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


def streamed(
    service: Service, names: list[str], size_bytes: int, media_type: str = "application/octet-stream"
) -> StreamingResponse:
    """The objects one after the other, as one body."""

    async def pieces() -> AsyncIterator[bytes]:
        for name in names:
            async for piece in service.objects.stream(name):
                yield piece

    headers = {"content-length": str(size_bytes)}
    return StreamingResponse(pieces(), headers=headers, media_type=media_type)


class Stored:
    """One input that is being stored: its row is there before its first byte, so that whatever is left of it
    is found and deleted.
    """

    def __init__(self, service: Service, caller: BatchCaller, purpose: str) -> None:
        self._service = service
        self._caller = caller
        self._purpose = purpose
        self.file_id = ""
        self.size_bytes = 0

    async def begin(self) -> None:
        """Raises Refused if the tenant has stored too much."""

        def begin() -> str:
            settings = self._service.settings
            new = NewFile(self._purpose, "", settings.retention_s)
            with self._service.engine.begin() as connection:
                return file_rows.begin_upload(
                    connection, self._caller, new, tenant_bytes_max=settings.tenant_bytes_max
                )

        self.file_id = await run_in_threadpool(begin)

    async def put(self, pieces: AsyncIterator[bytes]) -> None:
        """Raises TooLarge, or what the pieces raise."""
        await self._service.objects.put_stream(input_object(self.file_id), self._counted(pieces))

    async def finish(self, new: NewFile, once: Once) -> dict[str, Any]:
        """It is there from now on. Raises KeyInUse."""
        self._service.metrics.stored.inc(self.size_bytes)

        def finish() -> dict[str, Any]:
            with self._service.engine.begin() as connection:
                return once.create(connection, lambda: self._finish(connection, new))

        return await run_in_threadpool(finish)

    def _finish(self, connection: Connection, new: NewFile) -> dict[str, Any]:
        file_rows.finish_upload(connection, self.file_id, self.size_bytes, new)
        return shown(file_rows.find(connection, self._caller, self.file_id))

    async def give_up(self) -> None:
        def give_up() -> None:
            with self._service.engine.begin() as connection:
                file_rows.give_up_upload(connection, self.file_id)

        await run_in_threadpool(give_up)

    async def _counted(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        most = self._service.settings.file_bytes_max
        async for piece in pieces:
            self.size_bytes += len(piece)
            if self.size_bytes > most:
                raise TooLarge(f"A file has at most {most} bytes.", code="file_too_large")
            yield piece


async def _file_pieces(request: Request, reader: FormReader) -> AsyncIterator[bytes]:
    try:
        async for arrived in request.stream():
            for piece in reader.feed(arrived):
                if "purpose" in reader.form.fields:
                    _check_purpose(reader)
                yield piece
    except NotAForm:
        raise Refused("The form cannot be read, or has more than a 'file' and a 'purpose'.") from None
    if not reader.complete or reader.form.filename is None:
        raise Refused("Missing required parameter: 'file'.", "file", "missing_required_parameter")


def _check_purpose(reader: FormReader) -> None:
    if reader.form.fields.get("purpose") != "batch":
        raise Refused("'purpose' must be 'batch': files are for batches only.", "purpose")


def _new_file(reader: FormReader, service: Service) -> NewFile:
    fields = reader.form.fields
    for name in fields:
        if name not in _FIELDS:
            raise Refused(f"Unknown parameter: '{name[:64]}'.", name[:64], "unknown_parameter")
    _check_purpose(reader)
    expires_s = expires_s_of(
        fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]"), "expires_after"
    )
    filename = "".join(char for char in str(reader.form.filename) if char.isprintable())
    return NewFile("batch", filename[:_FILENAME_CHARS_MAX], expires_s or service.settings.retention_s)
