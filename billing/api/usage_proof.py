"""Routes of the proof: signed checkpoints of a tenant's chain, and the export that anyone can check."""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from billing.api.control import Control
from billing.api.fields import Label, Moment, Name, TenantQuery
from billing.api.focus_file import PREFIX, DatasetName, focus_file
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.api.signing_key import signing_key
from billing.api.usage_answers import CheckpointListing
from billing.exports import files
from billing.exports.files import COLUMNS, rows
from billing.exports.focus import Asked
from billing.exports.reading import requests_between
from billing.exports.recorded import Form, RecordedRequest
from billing.exports.table import FileForm, write
from billing.ledger.checkpoints import AUDIT_LOG, Checkpoint, head_of, list_checkpoints, signed
from billing.ledger.dropped import has_dropped_links
from billing.ledger.usage_export import export_usage, span_of
from billing.page import PageRequest
from billing.refusals import Invalid
from billing.schema.clock import database_now_ms
from billing.wire.evidence import public_pem

router = APIRouter(prefix="/admin/v1/usage", tags=["usage"], dependencies=[KNOWN_QUERY])

_NDJSON: Final = "application/x-ndjson"
_CSV: Final = "text/csv"
_PARQUET: Final = "application/vnd.apache.parquet"
_TABLES: Final = {"csv": _CSV, "parquet": _PARQUET}
ExportForm = Literal[
    "ndjson", "cloudevents", "openmeter", "stripe", "lago", "csv", "parquet", "focus-1.2", "focus-1.4"
]
_PIECE_BYTES: Final = 256 * 1024
Whose = Annotated[Name, Query(description="A tenant's id or name.")]


@router.get("/checkpoints", response_model=CheckpointListing)
def checkpoints(control: Control, page: PageQuery, tenant: TenantQuery = None) -> dict[str, Any]:
    """Where the tenant's chain stood at the end of each day that has usage, signed; newest first; and where
    it stands now. Without a tenant: the audit log. Gateways ask on the tenant's behalf.
    """
    with control.reading() as connection:
        chain = control.tenant_asked(connection, tenant) or AUDIT_LOG
        shown = listing(list_checkpoints(connection, chain, page), Checkpoint.to_json)
        logged = list_checkpoints(connection, AUDIT_LOG, PageRequest(1)).rows
        head = head_of(connection, chain)
    path = control.evidence_key_file
    key = None if path is None else signing_key(path)
    return shown | {
        "public_key": None if key is None else public_pem(key),
        "head": None if key is None or head is None else signed(head, key).to_json(),
        "audit_log": logged[0].to_json() if logged else None,
    }


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {_NDJSON: {}, _CSV: {}, _PARQUET: {}}}},
)
def export(
    control: Control,
    tenant: Whose,
    since: Annotated[Moment, Query(alias="from")],
    until: Annotated[Moment | None, Query(description="Default: now.")] = None,
    format: Annotated[ExportForm, Query(description="The form of the file.")] = "ndjson",
    customer: Annotated[
        Label | None, Query(description="Of `stripe` and `lago`: their name of the customer or subscription.")
    ] = None,
    dataset: Annotated[
        DatasetName, Query(description="Of FOCUS; 1.2 has the first alone.")
    ] = "cost-and-usage",
    as_: Annotated[FileForm, Query(alias="as", description="Of FOCUS.")] = "csv",
    columns: Annotated[
        str | None, Query(max_length=4000, description="Of FOCUS: these alone, with commas between.")
    ] = None,
) -> StreamingResponse:
    """What was recorded of a tenant in [from, until). `ndjson`: entries with their place in the chain,
    prices, receipts, invoices and signed checkpoints, in one file that `taas-verify` checks without us. Other
    forms: its requests as other systems take them. FOCUS: its charges in the billing periods that overlap
    this time.
    """
    key = None if control.evidence_key_file is None else signing_key(control.evidence_key_file)
    with control.reading() as connection:
        found = control.tenant_named(connection, tenant)
        until_ms = database_now_ms(connection) + 1 if until is None else until
        if since > until_ms:
            raise Invalid("The period begins after it ends.", param="from")
        if format.startswith(PREFIX):
            now_ms = database_now_ms(connection)
            asked = Asked(
                tenant=found, from_ms=since, until_ms=until_ms, now_ms=now_ms, issuer=control.issuer
            )
            version = format.removeprefix(PREFIX)
            file = focus_file(control, asked, version, dataset, as_, columns)
            return StreamingResponse(_pieces(file), media_type=_TABLES[as_])
        span = span_of(connection, found.tenant_id, since, until_ms)
        if format != "ndjson" and has_dropped_links(connection, found.tenant_id, span.first, span.last):
            raise Invalid(
                "Retention has dropped usage events that were recorded then: only ndjson has their proofs.",
                param="from", code="usage_dropped",
            )  # fmt: skip

    def requests() -> Iterator[RecordedRequest]:
        with control.reading() as connection:
            yield from requests_between(connection, found.tenant_id, span.first, span.last)

    def proof() -> Iterator[bytes]:
        with control.reading() as connection:
            yield from export_usage(connection, found, span, key)

    if format in _TABLES:
        file = write("parquet" if format == "parquet" else "csv", COLUMNS, rows(requests()))
        return StreamingResponse(_pieces(file), media_type=_TABLES[format])
    lines = proof() if format == "ndjson" else files.lines(requests(), Form(format), customer)
    return StreamingResponse(_pieces(lines), media_type=_NDJSON)


def _pieces(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Some lines at a time: each piece costs a switch of threads."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _PIECE_BYTES:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)
