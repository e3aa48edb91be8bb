"""Routes of the proof: signed checkpoints of a tenant's chain, and the export that anyone can check."""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from billing.api.control import Control
from billing.api.fields import Label, Moment, Name
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.api.signing_key import signing_key
from billing.api.usage_answers import CheckpointListing
from billing.exports import files
from billing.exports.files import csv_rows
from billing.exports.reading import requests_between
from billing.exports.recorded import Form
from billing.ledger.checkpoints import Checkpoint, list_checkpoints
from billing.ledger.usage_export import export_usage, span_of
from billing.refusals import Invalid
from billing.schema.clock import database_now_ms
from billing.wire.evidence import public_pem

router = APIRouter(prefix="/admin/v1/usage", tags=["usage"], dependencies=[KNOWN_QUERY])

_NDJSON: Final = "application/x-ndjson"
_CSV: Final = "text/csv"
ExportForm = Literal["ndjson", "cloudevents", "openmeter", "stripe", "lago", "csv"]
_PIECE_BYTES: Final = 256 * 1024
Whose = Annotated[Name, Query(description="A tenant's id or name.")]


@router.get("/checkpoints", response_model=CheckpointListing)
def checkpoints(control: Control, tenant: Whose, page: PageQuery) -> dict[str, Any]:
    """Where the tenant's chain stood at the end of each day that has usage, signed; newest first. Gateways
    ask on the tenant's behalf.
    """
    with control.reading() as connection:
        found = control.tenant_named(connection, tenant)
        shown = listing(list_checkpoints(connection, found.tenant_id, page), Checkpoint.to_json)
    path = control.evidence_key_file
    return shown | {"public_key": None if path is None else public_pem(signing_key(path))}


@router.get(
    "/export", response_class=StreamingResponse, responses={200: {"content": {_NDJSON: {}, _CSV: {}}}}
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
) -> StreamingResponse:
    """What was recorded of a tenant in [from, until). `ndjson`: entries with their place in the chain,
    prices, receipts, invoices and signed checkpoints, in one file that `taas-verify` checks without us. Other
    forms: its requests as other systems take them.
    """
    key = None if control.evidence_key_file is None else signing_key(control.evidence_key_file)
    with control.reading() as connection:
        found = control.tenant_named(connection, tenant)
        until_ms = database_now_ms(connection) + 1 if until is None else until
        if since > until_ms:
            raise Invalid("The period begins after it ends.", param="from")
        span = span_of(connection, found.tenant_id, since, until_ms)

    def lines() -> Iterator[bytes]:
        with control.reading() as connection:
            if format == "ndjson":
                yield from export_usage(connection, found, span, key)
                return
            requests = requests_between(connection, found.tenant_id, span.first, span.last)
            yield from (
                csv_rows(requests) if format == "csv" else files.lines(requests, Form(format), customer)
            )

    media_type = _CSV if format == "csv" else _NDJSON
    return StreamingResponse(_pieces(lines()), media_type=media_type)


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
