"""Refuses query parameters that a route does not know. If they were ignored, a mistyped filter would show
everything.
"""

from collections.abc import Iterator
from typing import Final

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends as Dependency
from fastapi.routing import APIRoute


async def _refuse_unknown(request: Request) -> None:
    if not request.query_params:
        return
    route: APIRoute = request.scope["route"]
    known = frozenset(_names_of(route.dependant))
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        raise RequestValidationError(
            [
                {"type": "extra_forbidden", "loc": ("query", name), "msg": "unknown parameter"}
                for name in unknown
            ]
        )


KNOWN_QUERY: Final[Dependency] = Depends(_refuse_unknown)
"""For each router of the API."""


def _names_of(dependant: Dependant) -> Iterator[str]:
    for param in dependant.query_params:
        yield param.alias
    for inner in dependant.dependencies:
        yield from _names_of(inner)
