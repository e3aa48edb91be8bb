"""Lists in a query as OpenAI's SDKs write them: `models[]=a&models[]=b` is read as `models=a&models=b`, and
`effective_at[gte]=1` as `effective_at_gte=1`.
"""

import re
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

_LIST: Final = re.compile(rb"(^|&)([a-z_]+)(?:\[\]|%5B%5D)(?==)", re.IGNORECASE)
_MEMBER: Final = re.compile(rb"(^|&)([a-z_]+)(?:\[|%5B)(gte?|lte?)(?:\]|%5D)(?==)", re.IGNORECASE)


class PlainLists(APIRoute):
    """A route whose query has only plain names."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of this route, behind the translation."""
        handle = super().get_route_handler()

        async def with_plain_names(request: Request) -> Response:
            plain = _LIST.sub(rb"\1\2", request.scope["query_string"])
            plain = _MEMBER.sub(rb"\1\2_\3", plain)
            return await handle(Request({**request.scope, "query_string": plain}, request.receive))

        return with_plain_names
