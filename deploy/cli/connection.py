"""The line to the admin API: finds its address and key, sends, and turns refusals into messages and exit
codes.

Exit codes of `taas`: 0 done, 1 refused or not reached, 2 wrong usage.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from deploy.cli.why import reason

if TYPE_CHECKING:
    import httpx

DEFAULT_URL: Final = "http://127.0.0.1:8001"
# An audit waits for usage on its way and may read back a whole ledger: some 10,000 entries a second.
_TIMEOUT_S: Final = 600.0
_CONNECT_TIMEOUT_S: Final = 5.0
_REPEATS_MAX: Final = 3
_REPEAT_AFTER_S: Final = 0.5
# As many as the API gives at once.
_PAGE_ROWS: Final = 1000


class AdminApiError(click.ClickException):
    """The admin API has said no; `code` as it says why."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Address:
    """Where the admin API is, and what opens it."""

    url: str
    key: str = field(repr=False)


def find_address() -> Address:
    """From the environment, else from `demo.env` of the home. Raises ClickException, saying what to set."""
    from deploy.cli.settings import CliSettings

    settings = CliSettings()
    path = settings.home / "demo.env"
    written = _read_env(path)
    url = settings.admin_url or written.get("TAAS_ADMIN_URL") or DEFAULT_URL
    if settings.admin_key:
        return Address(url, settings.admin_key)
    # The key in the file opens what the file names, and goes nowhere else.
    if "TAAS_ADMIN_KEY" in written and url == written.get("TAAS_ADMIN_URL"):
        return Address(url, written["TAAS_ADMIN_KEY"])
    raise click.ClickException(
        f"no admin key for {url}: set TAAS_ADMIN_URL and TAAS_ADMIN_KEY, or start everything here with "
        "`taas up`, "
        f"which writes them to {path}."
    )


def call(
    method: str, *path: str, query: dict[str, Any] | None = None, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Send to `/admin/v1/PATH…` and return the JSON. Options that are None are left out. Raises
    ClickException.
    """
    content, url = _content(method, *path, query=query, body=body)
    return _json(content, url)


def call_bytes(*path: str) -> bytes:
    """What is at `/admin/v1/PATH…`, as it is. Raises ClickException."""
    return _content("GET", *path)[0]


def _content(
    method: str, *path: str, query: dict[str, Any] | None = None, body: dict[str, Any] | None = None
) -> tuple[bytes, str]:
    """The answer's body, and whose it is."""
    address = find_address()
    with _reaching(address):
        answer = _send(_request(address, method, path, query, body))
    if not answer.is_success:
        raise _refusal(answer.status_code, answer.content, address.url)
    if answer.headers.get("x-taas-effect") == "pending":
        click.echo("note: saved; it takes effect as soon as Redis is back.", err=True)
    return answer.content, address.url


def download(file: IO[bytes], *path: str, query: dict[str, Any]) -> None:
    """Write what is at `/admin/v1/PATH…` into a file, piece by piece. Raises ClickException, also if it is
    cut off.
    """
    import httpx

    from billing.wire.certificates import checked_by

    address = find_address()
    timeout = httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    with _reaching(address):
        request = _request(address, "GET", path, query, None)
        with httpx.Client(timeout=timeout, trust_env=False, verify=checked_by(str(request.url))) as client:
            answer = client.send(request, stream=True)
            if not answer.is_success:
                raise _refusal(answer.status_code, answer.read(), address.url)
            for piece in answer.iter_bytes():
                file.write(piece)


@contextmanager
def _reaching(address: Address) -> Iterator[None]:
    """Says why billing was not reached. Raises ClickException."""
    import httpx

    try:
        yield
    except httpx.ConnectError as exc:
        raise click.ClickException(
            f"billing does not answer at {address.url}. Start everything with `taas up`, or it alone with "
            "`taas billing`; "
            "TAAS_ADMIN_URL names another place."
        ) from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise click.ClickException(f"{address.url}: {exc or type(exc).__name__}") from exc


def _request(
    address: Address,
    method: str,
    path: tuple[str, ...],
    query: dict[str, Any] | None,
    body: dict[str, Any] | None,
) -> "httpx.Request":
    import httpx

    return httpx.Request(
        method,
        f"{address.url.rstrip('/')}/admin/v1/{'/'.join(quote(step, safe='') for step in path)}",
        params={name: value for name, value in (query or {}).items() if value is not None},
        json=body,
        headers=_headers(method, address.key),
    )


def _headers(method: str, key: str) -> dict[bytes, bytes]:
    """An idempotency key of its own for each POST: it may be sent again, and is done once."""
    headers = {"authorization": f"Bearer {key}"}
    if method == "POST":
        headers["idempotency-key"] = uuid.uuid4().hex
    if method != "GET" and (why := reason()) is not None:
        headers["x-reason"] = why
    # Reasons are in UTF-8.
    return {name.encode(): value.encode() for name, value in headers.items()}


def _send(request: "httpx.Request") -> "httpx.Response":
    """The answer. What may be sent twice is sent again where the answer was lost, or the first one is not
    done yet.
    """
    import httpx

    from billing.wire.certificates import checked_by

    timeout = httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    repeats_left = _REPEATS_MAX if request.method in {"GET", "POST"} else 0
    with httpx.Client(timeout=timeout, trust_env=False, verify=checked_by(str(request.url))) as client:
        while True:
            try:
                answer = client.send(request)
                if repeats_left == 0 or b'"idempotency_key_in_use"' not in answer.content:
                    return answer
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                if repeats_left == 0:
                    raise
            except httpx.ConnectError:
                # The first time nothing runs there. Later billing may be starting again.
                if repeats_left in {0, _REPEATS_MAX}:
                    raise
            repeats_left -= 1
            time.sleep(_REPEAT_AFTER_S)


def call_list(*path: str, query: dict[str, Any] | None = None, limit: int | None = None) -> dict[str, Any]:
    """A listing, all of its pages or its first `limit` rows, as `{"data": […]}`. Raises ClickException."""
    rows: list[dict[str, Any]] = []
    asked = dict(query or {})
    while limit is None or len(rows) < limit:
        asked["limit"] = _PAGE_ROWS if limit is None else min(limit - len(rows), _PAGE_ROWS)
        page = call("GET", *path, query=asked)
        rows += page["data"]
        asked["after"] = page.get("next")
        if asked["after"] is None:
            break
    return {"data": rows}


def given(**fields: Any) -> dict[str, Any]:
    """The fields of a body that have been given; None and empty lists have not."""
    return {name: value for name, value in fields.items() if value is not None and value not in ((), [])}


def _refusal(status: int, content: bytes, url: str) -> AdminApiError:
    try:
        error = _json(content, url)["error"]
        message, code = str(error["message"]), error.get("code")
    except (click.ClickException, KeyError, TypeError, AttributeError):
        return AdminApiError(
            f"{url} answers HTTP {status}, and not as the admin API does: is TAAS_ADMIN_URL right?"
        )
    if status == 401:
        return AdminApiError(
            f"{url} does not know this admin key; is TAAS_ADMIN_KEY that of this billing process?"
        )
    return AdminApiError(message, code)


def _json(content: bytes, url: str) -> dict[str, Any]:
    import json

    try:
        answer: dict[str, Any] = json.loads(content)
    except ValueError as exc:
        raise click.ClickException(
            f"{url} does not answer as the admin API does: is TAAS_ADMIN_URL right?"
        ) from exc
    return answer


def _read_env(path: Path) -> dict[str, str]:
    """`NAME=value` lines; nothing when there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (
        line.removeprefix("export ").partition("=")
        for line in lines
        if "=" in line and not line.startswith("#")
    )
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}
