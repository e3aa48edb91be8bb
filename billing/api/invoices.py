"""Routes of invoices and credit notes."""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Path, Query, Response
from pydantic import AfterValidator, Field, WithJsonSchema
from sqlalchemy import Connection

from billing.api.amounts import Amount
from billing.api.answer import Listing
from billing.api.control import Control
from billing.api.fields import Body, Label, Name, TenantQuery
from billing.api.invoice_answers import InvoiceAnswer, InvoiceCheck, InvoiceDraft, InvoiceRow
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.api.signing_key import signing_key
from billing.audit.finding_rows import count_by_state
from billing.catalogue import tenants
from billing.catalogue.money import Money
from billing.contracts import store as contracts
from billing.invoices import credit_notes, store
from billing.invoices.close import close, compute_again, make_draft, refuse_early, require_issuer
from billing.invoices.document import sha256
from billing.invoices.periods import period
from billing.invoices.store import Stored
from billing.refusals import Conflict
from billing.schema.clock import database_now_ms

router = APIRouter(prefix="/admin/v1/invoices", tags=["invoices"], dependencies=[KNOWN_QUERY])


def _period(name: str) -> str:
    period(name, 1, "UTC")
    return name


Period = Annotated[
    str,
    Field(max_length=64),
    AfterValidator(_period),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]{4}-(0[1-9]|1[0-2])$", "examples": ["2026-11"]}),
]
_NUMBER: Final = r"^(INV|CN)-[0-9]{6,12}$"


def _number(text: str) -> str:
    if re.fullmatch(_NUMBER, text) is None:
        raise ValueError("a number of a document is such as INV-000001 or CN-000001")
    return text


Number = Annotated[
    str, Path(), AfterValidator(_number), WithJsonSchema({"type": "string", "pattern": _NUMBER})
]
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"schema": {"type": "object"}}}}
}


class CloseBody(Body):
    """Which period of which tenant: by the month in which it begins."""

    tenant: Name
    period: Period


class CreditNoteBody(Body):
    """What is given back of an invoice, in whole cents before tax, and why."""

    usd: Amount
    reason: Label


@router.post("", status_code=201, response_model=InvoiceAnswer)
def issue(body: CloseBody, control: Control, response: Response) -> dict[str, Any]:
    """Close a period: its invoice is numbered, signed and final. Refused while the period lasts, while usage
    of it waits to be recorded, out of order, and without a key or an issuer.
    """
    with control.changing(response) as connection:
        tenant = control.tenant_named(connection, body.tenant)
        made = close(
            connection,
            control.redis,
            tenant,
            body.period,
            issuer=control.issuer,
            key=signing_key(control.evidence_key_file),
            now_ms=database_now_ms(connection),
        )
        return _whole(connection, made)


@router.get("", response_model=Listing[InvoiceRow])
def list_all(
    control: Control,
    asked: PageQuery,
    tenant: TenantQuery = None,
    kind: Annotated[Literal["invoice", "credit_note"] | None, Query()] = None,
) -> dict[str, Any]:
    """Invoices and credit notes, the newest first."""
    with control.reading() as connection:
        tenant_id = control.tenant_asked(connection, tenant)
        page = store.list_page(connection, asked, tenant_id, kind)
        names = tenants.names(connection, {each.tenant_id for each in page.rows})
        return listing(page, lambda each: _row(each, names))


@router.get("/draft", response_model=InvoiceDraft)
def draft(
    control: Control,
    tenant: Annotated[Name, Query(description="A tenant's id or name.")],
    name: Annotated[Period, Query(alias="period")],
) -> dict[str, Any]:
    """What the invoice of a period would say now. It has no number, and changes until that is closed. A
    tenant is not told of what is missing on our side.
    """
    with control.reading() as connection:
        found = control.tenant_named(connection, tenant)
        made = make_draft(connection, found, name, issuer=control.issuer, now_ms=contracts.now_ms(connection))
        findings = None if control.tenant_id is not None else _unresolved(connection)
        checks: list[Callable[[], object]] = [
            partial(refuse_early, control.redis, made.facts.until_ms, reserved=bool(made.reserved))
        ]
        if control.tenant_id is None:
            checks += [
                partial(signing_key, control.evidence_key_file),
                partial(require_issuer, control.issuer),
            ]
        waits = []
        for check in checks:
            try:
                check()
            except Conflict as exc:
                waits.append(exc.message)
    return {
        "tenant": found.tenant_id,
        "period": name,
        "waits": " ".join(waits) or None,
        "findings": findings,
        "document": orjson.loads(made.document("draft")),
    }


@router.get("/{number}", response_model=InvoiceAnswer)
def show(number: Number, control: Control) -> dict[str, Any]:
    """One invoice or credit note."""
    with control.reading() as connection:
        return _whole(connection, store.find(connection, number, only=control.tenant_id))


@router.get("/{number}/document", response_class=Response, responses=_BYTES)
def document(number: Number, control: Control) -> Response:
    """The document's own bytes: what `sha256` is of."""
    with control.reading() as connection:
        return Response(
            store.find(connection, number, only=control.tenant_id).document, media_type="application/json"
        )


@router.get(
    "/{number}/pdf",
    response_class=Response,
    responses={200: {"content": {"application/pdf": {"schema": {"type": "string", "format": "binary"}}}}},
)
def pdf(number: Number, control: Control) -> Response:
    """The same for people. The same document makes the same bytes, with the same font."""
    from billing.invoices.pdf import make_pdf

    with control.reading() as connection:
        found = store.find(connection, number, only=control.tenant_id)
    return Response(
        make_pdf(found.document, found.signature, control.invoice_font_file), media_type="application/pdf"
    )


@router.get("/{number}/check", response_model=InvoiceCheck)
def check(number: Number, control: Control) -> dict[str, Any]:
    """Compute an invoice again from the ledger, and compare."""
    with control.reading() as connection:
        found = store.find(connection, number, only=control.tenant_id)
        again = compute_again(connection, number) if found.kind == "invoice" else found.document
    stored = sha256(found.document)
    return {
        "number": number,
        "same": again == found.document and stored == found.sha256,
        "sha256": sha256(again),
        "stored_sha256": found.sha256,
    }


@router.post("/{number}/credit-notes", status_code=201, response_model=InvoiceAnswer)
def give_back(number: Number, body: CreditNoteBody, control: Control, response: Response) -> dict[str, Any]:
    """Give back a part of an invoice, and the tax on it. The invoice stays as it is."""
    with control.changing(response) as connection:
        made = credit_notes.issue(
            connection,
            number,
            Money.parse(body.usd),
            body.reason,
            issuer=control.issuer,
            key=signing_key(control.evidence_key_file),
            now_ms=database_now_ms(connection),
        )
        return _whole(connection, made)


def _unresolved(connection: Connection) -> list[dict[str, Any]]:
    counts: Counter[str] = Counter()
    for (kind, state), count in count_by_state(connection).items():
        if state in {"open", "acknowledged"}:
            counts[kind] += count
    return [{"kind": kind, "count": count} for kind, count in sorted(counts.items())]


def _whole(connection: Connection, each: Stored) -> dict[str, Any]:
    names = tenants.names(connection, [each.tenant_id])
    return {**_row(each, names), "document": orjson.loads(each.document)}


def _row(each: Stored, names: dict[str, str]) -> dict[str, Any]:
    return {
        "number": each.number,
        "kind": each.kind,
        "tenant": each.tenant_id,
        "tenant_name": names.get(each.tenant_id),
        "period": each.period,
        "from_ms": each.from_ms,
        "until_ms": each.until_ms,
        "net": str(each.net),
        "total": str(each.total),
        "due": str(each.due),
        "issued_ms": each.issued_ms,
        "sha256": each.sha256,
        "key": each.key_id,
        "signature": each.signature,
        "corrects": each.corrects,
    }
