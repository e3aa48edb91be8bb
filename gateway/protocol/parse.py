"""The entry: checks a body against the allow-list of its route."""

from msgspec.structs import replace

from gateway.protocol.ignored import Recording
from gateway.protocol.json_body import load_object
from gateway.request import ParsedRequest, RouteSpec


def parse_request(route: RouteSpec, raw: bytes) -> ParsedRequest:
    """The checked request in `raw`. Raises InvalidJson or another InvalidRequest, before anything is reserved
    for it.
    """
    with Recording() as ignored:
        parsed = route.parser(route, load_object(raw))
    places, aside = ignored.places(), ignored.aside
    return replace(parsed, ignored=places, aside=tuple(aside)) if places or aside else parsed
