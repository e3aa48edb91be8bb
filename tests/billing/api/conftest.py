"""The admin API in process: a real database, a real Valkey, no sockets but to them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest
import redis
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import Engine, create_engine

from billing.accounts.roles import OF_TENANT, Role
from billing.api.app import build_app
from billing.settings import BillingSettings
from billing.wire.evidence import make_key

ADMIN_KEY = "adm-test-1"
SERVICE_KEY = "svc-test-1"


SETTINGS = BillingSettings(admin_key=ADMIN_KEY, service_key=SERVICE_KEY)


@pytest.fixture(scope="session")
def api_document() -> dict[str, Any]:
    """The API's document: the same for every app, and most of a second's work."""
    nowhere = create_engine("postgresql+psycopg://")
    made: dict[str, Any] = build_app(SETTINGS, nowhere, redis.Redis()).openapi()
    return made


@pytest.fixture
def app(database: Engine, raw_redis: redis.Redis, api_document: dict[str, Any]) -> FastAPI:
    """The app; its projector's loop does not run, so that what a test sees is what the call itself did."""
    app = build_app(SETTINGS, database, raw_redis)
    app.openapi_schema = api_document
    return app


class InOneCall(httpx2.BaseTransport):
    """Asks the app with one call into its event loop. The transport of `TestClient` needs seven each, for
    answers in pieces; the admin API has none of these.
    """

    def __init__(self, client: TestClient) -> None:
        self._client = client

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        path, _, query = request.url.raw_path.partition(b"?")
        scope = {
            "type": "http", "http_version": "1.1", "method": request.method, "scheme": "http",
            "path": unquote(path.decode()), "raw_path": path, "root_path": "", "query_string": query,
            "headers": headers, "client": ("testclient", 50_000), "server": ("testserver", 80),
            "state": self._client.app_state.copy(),
        }  # fmt: skip
        assert self._client.portal is not None
        return self._client.portal.call(self._answer, scope, request.read())

    async def _answer(self, scope: dict[str, Any], body: bytes) -> httpx2.Response:
        sent: list[Any] = []
        incoming = iter([{"type": "http.request", "body": body}])

        async def receive() -> Any:
            return next(incoming, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            sent.append(message)

        try:
            await self._client.app(scope, receive, send)
        except Exception:
            # Starlette raises what it has answered with 500.
            if not sent or sent[0]["status"] != 500:
                raise
        start, *rest = sent
        content = b"".join(message.get("body", b"") for message in rest)
        return httpx2.Response(start["status"], headers=start["headers"], content=content)


class Documented(TestClient):
    """A client that fails where an answer has a status that the API's document does not know."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._transport = InOneCall(self)

    def request(self, method: str, *args: Any, **more: Any) -> Any:
        answer = super().request(method, *args, **more)
        operation = operation_of(self.app, answer)
        # Whether a failure of the server itself is right is for the test to say.
        if operation is not None and answer.status_code != 500:
            assert str(answer.status_code) in operation["responses"], (method, answer.url, answer.text)
        return answer


def operation_of(app: Any, answer: Any) -> dict[str, Any] | None:
    """What the document says of the route that answered; None where there is no such route."""
    method, path = answer.request.method, answer.request.url.path
    for route in app.routes:
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        if method in route.methods and route.path_regex.match(path):
            operation: dict[str, Any] = app.openapi()["paths"][route.path_format][method.lower()]
            return operation
    return None


@pytest.fixture
def key_file(tmp_path: Path, app: FastAPI) -> Path:
    """The file of a new private key, with which the app signs what `us` issues."""
    path = tmp_path / "evidence.key"
    path.write_text(make_key(), encoding="utf-8")
    path.chmod(0o600)
    app.state.control = replace(app.state.control, evidence_key_file=path, issuer="us")
    return path


@pytest.fixture
def nobody(app: FastAPI) -> Iterator[TestClient]:
    """A client without a key. Failures of the server show as its answers."""
    with Documented(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def admin(app: FastAPI) -> Iterator[TestClient]:
    """A client with the admin key."""
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    with Documented(app, raise_server_exceptions=False, headers=headers) as client:
        yield client


KeyOf = Callable[[Role], str]


def bearing(key: str) -> dict[str, str]:
    """The headers of a caller with this key."""
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def key_of(admin: TestClient) -> KeyOf:
    """The key of a caller of this role; those of a tenant are of `acme`."""
    settings = {Role.ROOT: ADMIN_KEY, Role.SERVICE: SERVICE_KEY}

    def key(role: Role) -> str:
        if role in settings:
            return settings[role]
        if role in OF_TENANT and admin.get("/admin/v1/tenants/acme").status_code == 404:
            assert admin.post("/admin/v1/tenants", json={"name": "acme"}).status_code == 201
        body = {"role": role.value} | ({"tenant": "acme"} if role in OF_TENANT else {})
        answer = admin.post("/admin/v1/admin-keys", json=body)
        assert answer.status_code == 201, answer.text
        secret: str = answer.json()["key"]
        return secret

    return key


@pytest.fixture
def made(admin: TestClient) -> Callable[..., dict[str, Any]]:
    """Posts to a noun and returns the answer, which must be a creation."""

    def make(noun: str, **body: Any) -> dict[str, Any]:
        answer = admin.post(f"/admin/v1/{noun}", json=body)
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    return make
