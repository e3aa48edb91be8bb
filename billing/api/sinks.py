"""Routes of sinks: where recorded requests are delivered."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field
from sqlalchemy import Connection

from billing.api.answer import Answer, Listing, Ms
from billing.api.control import Control
from billing.api.fields import Body, IdPath, Label, Moment, Name, OutsideUrl, TenantQuery
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.exports import sinks
from billing.exports.recorded import Form
from billing.exports.sinks import Lag, Sink, Skipped
from billing.page import Page

router = APIRouter(prefix="/admin/v1/sinks", tags=["sinks"], dependencies=[KNOWN_QUERY])

SinkForm = Literal["cloudevents", "openmeter", "stripe", "lago"]


class SinkCreate(Body):
    """Where to, in which form; of one tenant, or of all. `customer`: what Stripe or Lago call the tenant.
    `meter`: their name of what is counted. `bearer` opens the receiver; it is never shown. `from`: what was
    recorded then or later; else from now on.
    """

    url: OutsideUrl
    format: SinkForm
    tenant: Name | None = None
    customer: Label | None = None
    meter: Label | None = None
    bearer: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[\x21-\x7e]+$")] | None = None
    since: Annotated[Moment | None, Field(alias="from")] = None


class SinkAnswer(Answer):
    """`undelivered`: entries that wait, since `oldest_ms`. `failure`: why the last attempt failed; the next
    one is at `next_ms`. `skipped`: requests to be settled with it by hand.
    """

    sink: str
    tenant: str | None
    url: str
    format: SinkForm
    customer: str | None
    meter: str | None
    paused: bool
    created_ms: Ms
    undelivered: int
    oldest_ms: Ms | None
    failure: str | None
    next_ms: Ms | None
    skipped: int


class SinkMade(SinkAnswer):
    """`secret` signs what is sent, and is shown this once."""

    secret: str


class SkippedAnswer(Answer):
    """A request that was too old for the receiver when it could have been sent (`too_old`), or that it may
    have and would count again (`unsure`).
    """

    tenant: str
    position: int
    request_id: str
    ended_ms: Ms
    skipped_ms: Ms
    why: sinks.Why


@router.post("", response_model=SinkMade, status_code=201)
def create(body: SinkCreate, control: Control, response: Response) -> dict[str, Any]:
    """Deliver recorded requests to this URL, in the order in which they are recorded, at least once, each
    always under the same ids. Calls are signed as the Standard Webhooks specification has it.
    """
    with control.changing(response) as connection:
        tenant_id = None if body.tenant is None else control.tenant_named(connection, body.tenant).tenant_id
        made = sinks.create(
            connection, body.url, Form(body.format), tenant_id=tenant_id, customer=body.customer,
            meter=body.meter, bearer=body.bearer, from_ms=body.since,
        )  # fmt: skip
        return _shown(made, sinks.lags(connection)) | {"secret": made.secret}


@router.get("", response_model=Listing[SinkAnswer])
def list_all(control: Control, page: PageQuery, tenant: TenantQuery = None) -> dict[str, Any]:
    """The sinks, or those of one tenant alone, and how far behind they are."""
    with control.reading() as connection:
        found = sinks.list_page(connection, page, control.tenant_asked(connection, tenant))
        return listing(Page(_all_shown(connection, found.rows), found.next), dict)


@router.post("/{sink}/pause", response_model=SinkAnswer)
def pause(sink: IdPath, control: Control, response: Response) -> dict[str, Any]:
    """Send it nothing until it is resumed."""
    with control.changing(response) as connection:
        return _shown(sinks.pause(connection, sink, True), sinks.lags(connection))


@router.post("/{sink}/resume", response_model=SinkAnswer)
def resume(sink: IdPath, control: Control, response: Response) -> dict[str, Any]:
    """Go on where it was, at once, also if it is not paused but waits after a failure."""
    with control.changing(response) as connection:
        return _shown(sinks.pause(connection, sink, False), sinks.lags(connection))


@router.delete("/{sink}", response_model=SinkAnswer)
def remove(sink: IdPath, control: Control, response: Response) -> dict[str, Any]:
    """Remove it, and its report of what was not sent. The answer shows it."""
    with control.changing(response) as connection:
        lags = sinks.lags(connection)
        return _shown(sinks.remove(connection, sink), lags)


@router.get("/{sink}/skipped", response_model=Listing[SkippedAnswer])
def list_skipped(sink: IdPath, control: Control, page: PageQuery) -> dict[str, Any]:
    """What was not sent, because the receiver takes none so old or may have it already: to be settled with it
    by hand.
    """
    with control.reading() as connection:
        return listing(sinks.skipped(connection, sink, page), _shown_skipped)


def _all_shown(connection: Connection, some: list[Sink]) -> list[dict[str, Any]]:
    lags = sinks.lags(connection)
    return [_shown(sink, lags) for sink in some]


def _shown(sink: Sink, lags: Mapping[str, Lag]) -> dict[str, Any]:
    lag = lags.get(sink.sink_id, Lag())
    return {
        "sink": sink.sink_id,
        "tenant": sink.tenant_id,
        "url": sink.url,
        "format": sink.form.value,
        "customer": sink.customer,
        "meter": sink.meter,
        "paused": sink.paused,
        "created_ms": sink.created_ms,
        "undelivered": lag.undelivered,
        "oldest_ms": lag.oldest_ms,
        "failure": lag.failure,
        "next_ms": lag.next_ms,
        "skipped": lag.skipped,
    }


def _shown_skipped(row: Skipped) -> dict[str, Any]:
    return {
        "tenant": row.chain,
        "position": row.position,
        "request_id": row.request_id,
        "ended_ms": row.ended_ms,
        "skipped_ms": row.skipped_ms,
        "why": row.why,
    }
