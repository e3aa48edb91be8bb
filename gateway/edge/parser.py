"""Makes the request parser, and a second one for a request that offers an upgrade from HTTP/1.1. It refuses
nothing itself.
"""

from typing import Any, Protocol

import httptools


class ParserTarget(Protocol):
    """What a parser calls, in the order of a request."""

    def on_message_begin(self) -> None: ...
    def on_url(self, target: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_body(self, piece: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


class AfterHead:
    """Passes a parser's calls on from the end of the first head."""

    def __init__(self, target: ParserTarget) -> None:
        self._target = target
        self._in_first_head = True
        self.on_body = target.on_body
        self.on_message_complete = target.on_message_complete

    def on_message_begin(self) -> None:
        if not self._in_first_head:
            self._target.on_message_begin()

    def on_url(self, target: bytes) -> None:
        if not self._in_first_head:
            self._target.on_url(target)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_first_head:
            self._target.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._in_first_head:
            self._in_first_head = False
        else:
            self._target.on_headers_complete()


def new_parser(target: ParserTarget) -> Any:
    """A request parser in strict mode, except that it drops bytes after `Connection: close` and does not fail
    the request before them.
    """
    parser = httptools.HttpRequestParser(target)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
