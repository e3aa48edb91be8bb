"""Serves lines of batches: inference requests that the batch service sends for a tenant, with a ticket in
place of an API key. They pass all stages of a request as every other does; only who asks, and under which
request id, is read from the ticket.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from pydantic import SecretStr

from billing.wire.batch_line import LINES_PATH, LineTicket, TicketRefused
from gateway.api import InferenceApi, RawHeaders
from gateway.authenticate import Caller, caller_with, presented_bearer
from gateway.catalogue.feed import Catalogue
from gateway.edge.client import new_request_id
from gateway.errors import AuthenticationFailed
from gateway.request import RouteSpec
from gateway.routes import ROUTES_BY_PATH

LINE_ROUTES: Final[Mapping[bytes, RouteSpec]] = {
    LINES_PATH.encode() + path: route for path, route in ROUTES_BY_PATH.items() if route.metered
}


def serving_lines(inference: InferenceApi, service_key: SecretStr) -> InferenceApi:
    """The same stages for lines of batches."""
    key = service_key.get_secret_value()
    return replace(
        inference,
        new_request_id=partial(_request_id, key),
        authenticate=partial(_authenticate, key),
    )


def _request_id(service_key: str, headers: RawHeaders) -> str:
    try:
        return _ticket(headers, service_key).request_id
    except AuthenticationFailed:
        return new_request_id()  # it will be refused


async def _authenticate(service_key: str, headers: RawHeaders, catalogue: Catalogue, now_ms: int) -> Caller:
    """Raises AuthenticationFailed for a ticket that is not ours or has lapsed, and what an API key may be
    refused with.
    """
    ticket = _ticket(headers, service_key)
    if ticket.until_ms <= now_ms:
        raise AuthenticationFailed
    return await caller_with(ticket.key_hash, catalogue, now_ms, ticket.name)


def _ticket(headers: RawHeaders, service_key: str) -> LineTicket:
    try:
        return LineTicket.read(presented_bearer(headers), service_key)
    except TicketRefused as exc:
        raise AuthenticationFailed from exc
