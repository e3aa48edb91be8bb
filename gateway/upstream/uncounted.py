"""The part of an adapter that a provider does not have: it cannot stop a request by id, and it does not tell
what a request has produced. Its instances have neither `abort` nor `counts`, so nobody calls these.
"""

from typing import NoReturn

from gateway.request import ParsedRequest


def abort(parsed: ParsedRequest, request_id: str) -> NoReturn:
    """Never called: the connection is closed instead."""
    raise NotImplementedError("a provider stops no request by id")


def count(request_id: str) -> NoReturn:
    """Never called: what its answer did not say stays unknown."""
    raise NotImplementedError("a provider counts no requests")


def read_count(answer: bytes, request_id: str) -> NoReturn:
    """Never called."""
    raise NotImplementedError("a provider counts no requests")
