"""What a request's head may contain, beyond what llhttp insists on, and the answer to one that breaks this.
No I/O.

llhttp (httptools 0.9) itself refuses, each checked by a test: bare LF, obs-fold, space before a colon,
Content-Length twice or beside Transfer-Encoding or not a number, control characters, broken chunk framing. It
accepts: no Host or several, any Host, a Transfer-Encoding other than `chunked` as long as that is last, any
Transfer-Encoding in HTTP/1.0, any URL as absolute-form and fragments, versions 0.9 and 2.0, and trailers,
which arrive as if they were headers.
"""

import re
from collections.abc import Iterable

import httptools

from billing.wire.routes import dialect_of_path
from gateway.edge.client import id_headers, new_request_id
from gateway.error_form import error_body, error_headers
from gateway.errors import GatewayError, InvalidRequest, MethodNotAllowed

HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
TARGET_BYTES_MAX = 8 * 1024
# Headers that decide where a request ends or where it goes: there must be exactly one reading of each.
WATCHED = frozenset({b"host", b"transfer-encoding", b"expect"})

_HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+,;=-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?]*)([/?].*)?", re.IGNORECASE)
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64} ")


class InvalidHead(InvalidRequest):
    """A head that two parsers could read differently, or that is larger than any real one. The connection
    is closed.
    """

    code = "invalid_http"
    close = True


class UnknownMethod(MethodNotAllowed):
    """A method that is not even one of HTTP's. What follows it cannot be parsed, so the connection is
    closed.
    """

    close = True


def check_host(value: bytes) -> None:
    """A host and a port, without anything that a URL parser would cut off."""
    if _HOST.fullmatch(value) is None:
        raise InvalidHead("The Host header is not a host name or address with an optional port.")


def check_transfer_encoding(value: bytes) -> None:
    """One coding, the one that frames the body."""
    if value.strip(b" \t").lower() != b"chunked":
        raise InvalidHead("Transfer-Encoding must be exactly 'chunked'.")


def check_line(version: str, has_host: bool, is_chunked: bool) -> None:
    """Check the request line together with the headers."""
    if version == "1.1":
        if not has_host:
            raise InvalidHead("An HTTP/1.1 request needs a Host header.")
    elif version != "1.0":
        raise InvalidHead("Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    elif is_chunked:
        raise InvalidHead("Transfer-Encoding is not part of HTTP/1.0.")


def origin_form(target: bytes) -> tuple[bytes, bytes | None]:
    """The target as path and query, and the authority of a target in absolute-form (RFC 9112 §3.2.2), which
    replaces the Host header. Everything behind the listener sees only the path, so that what is routed is
    what was authorised.
    """
    if b"#" in target:
        raise InvalidHead("The request target must not have a fragment.")
    if target[:1] == b"/":
        return target, None
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise InvalidHead("The request target must be a path or an http URL, with a query at most.")
    authority, path = absolute[1], absolute[2] or b"/"
    check_host(authority)
    return (path if path[:1] == b"/" else b"/" + path), authority


def refusal_of(error: httptools.HttpParserError, received: bytes) -> GatewayError | None:
    """The answer to a parser's error: our error if one of our checks raised it, None for a bug. `received`:
    the beginning of the request, if known.
    """
    context = error.__context__
    if isinstance(context, GatewayError):
        return context
    if context is not None:
        return None
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _METHOD.match(received):
        return UnknownMethod("GET, POST")
    # The parser's reasons are fixed texts; none quotes the request.
    return InvalidHead(f"The request is not valid HTTP: {error}.")


def refusal_bytes(
    error: GatewayError, target: bytes, more_headers: Iterable[tuple[bytes, bytes]] = ()
) -> bytes:
    """A complete response, in the dialect of the path if that is known; it announces the end of the
    connection.
    """
    request_id = new_request_id()
    dialect = dialect_of_path(target.decode("latin-1"))
    body = error_body(error, dialect, request_id)
    headers = [*error_headers(error), *id_headers(dialect, request_id), *more_headers]
    headers.append((b"content-length", b"%d" % len(body)))
    if not error.close:
        headers.append((b"connection", b"close"))
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (error.status, _PHRASES.get(error.status, b"Error"), lines, body)


_PHRASES = {
    400: b"Bad Request",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    500: b"Internal Server Error",
}
