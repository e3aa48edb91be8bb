"""The API's document: what FastAPI knows of the routes, and what it does not: rights, the form of errors, and
idempotency keys.

The routes are the truth, so this module only adds; a test compares real answers with the document.
"""

from collections.abc import Iterator, Mapping, Set
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from billing.accounts.roles import Role
from billing.api.answer import Refusal
from billing.api.buffered_body import BODY_BYTES_MAX
from billing.api.control import EFFECT_HEADER, REASON_CHARS_MAX, REASON_HEADER
from billing.api.errors import REQUEST_ID_HEADER
from billing.api.idempotency import REPLAYED_HEADER
from billing.api.rights import RIGHTS
from billing.idempotency import PARAM

_ABOUT: Final = f"""\
Tenants, keys, prices, capacity and contracts of a taas installation, what was used, and the proof that it
is all of it.

**Moments** are taken as RFC 3339, as a date, or as milliseconds since 1970. Fields that end in `_ms` answer
milliseconds, others RFC 3339 in UTC. **Decimals** (units per second, money, parts of one) are answered as
strings, because they are exact. **Lists** come by pages: `limit` rows, and `next`, to be given as `after`.
**Errors** have one form, and what is wrong with a request is 400. A key that stands twice in one JSON
object is refused; so are fields that are not known, and names in a query. **`{PARAM}`** on a POST: the same
request again gets the first answer, with `{REPLAYED_HEADER}: true`, and does nothing; for 24 hours. A
request that is refused changes nothing and leaves its key free. 400 `idempotency_key_reused`: the key came
with another request; 409 `idempotency_key_in_use`: the first one is not answered yet; 409
`idempotency_answer_lost`: it was carried out, and its answer is not known. A key is in no repeated answer.
**`{REASON_HEADER}`** on a change: why it is made, for the audit log. `x-roles` of an operation: who may call
it; a role of a tenant (admin, member, billing, viewer) sees and changes that tenant's things only."""
_CHANGES: Final = frozenset({"post", "put", "patch", "delete"})
# A request that names one of these may name one that does not exist.
_NAMING: Final = frozenset(
    {"tenant", "model", "pool", "contract", "key_id", "project", "owner", "visible", "models", "instance"}
)
_REFUSAL: Final = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
_WORDS: Final = {
    400: "Something of the request is wrong; `param` names it.",
    401: "No key, or one that is not known.",
    403: "The key has no right to this.",
    404: "What is named is not there.",
    409: "It does not go with what is there now; `code` says why.",
    413: f"The body has more than {BODY_BYTES_MAX} bytes.",
    424: "The engine does not answer as it should.",
    503: "A store does not answer.",
}


def install(app: FastAPI) -> None:
    """Have the app say this of itself."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
    schemas = document["components"]["schemas"]
    for unsent in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unsent, None)
    refusal = Refusal.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= refusal.pop("$defs") | {"Refusal": refusal}
    document["components"]["securitySchemes"] = {
        "adminKey": {"type": "http", "scheme": "bearer", "description": "An admin key."},
        "serviceKey": {
            "type": "http",
            "scheme": "bearer",
            "description": "The service key: `TAAS_SERVICE_KEY`.",
        },
    }
    names = {
        (method.lower(), route.path_format): f"{route.tags[0]}_{route.name}" for method, route in _routes(app)
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["operationId"] = names[method, path]
            _complete(operation, method, RIGHTS[_entry(app, method, path)], schemas)
    return document


def _routes(app: FastAPI) -> Iterator[tuple[str, APIRoute]]:
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            yield from ((method, route) for method in route.methods or ())


def _entry(app: FastAPI, method: str, path: str) -> str:
    return next(
        f"{m} {route.path}" for m, route in _routes(app) if (m.lower(), route.path_format) == (method, path)
    )


def _complete(operation: dict[str, Any], method: str, roles: Set[Role], schemas: Mapping[str, Any]) -> None:
    public = Role.NOBODY in roles
    operation["security"] = [] if public else [{"adminKey": []}]
    if not public:
        operation["x-roles"] = sorted({Role.ROOT, *roles})
        if Role.SERVICE in roles:
            operation["security"].append({"serviceKey": []})
    responses = operation["responses"]
    responses.pop("422", None)
    for status, response in responses.items():
        response["description"] = _WORDS.get(int(status), "Done.")
        response["headers"] = {REQUEST_ID_HEADER: {"schema": {"type": "string"}}}
    for status in _refusals(operation, method, schemas, public=public):
        responses.setdefault(str(status), {"content": _REFUSAL})["description"] = _WORDS[status]
    if method in _CHANGES:
        done = next(response for status, response in responses.items() if status.startswith("2"))
        effect = "`now`, or `pending`: it is saved, and takes effect when Redis is back."
        done["headers"][EFFECT_HEADER] = {"schema": {"enum": ["now", "pending"]}, "description": effect}
        schema = {"type": "string", "minLength": 1, "maxLength": REASON_CHARS_MAX}
        operation.setdefault("parameters", []).append(
            _header(REASON_HEADER, "Why, for the audit log; in UTF-8.", schema)
        )
    if method == "post":
        done["headers"][REPLAYED_HEADER] = {
            "schema": {"const": "true"},
            "description": "The first answer, again.",
        }
        schema = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}
        said = "The same request again under the same key does nothing, and gets the first answer."
        operation["parameters"].append(_header(PARAM, said, schema))


def _header(name: str, said: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": said, "schema": schema}


def _refusals(
    operation: Mapping[str, Any], method: str, schemas: Mapping[str, Any], *, public: bool
) -> Iterator[int]:
    parameters = operation.get("parameters", [])
    body = operation.get("requestBody")
    named = {parameter["name"] for parameter in parameters}
    if body is not None:
        reference = body["content"]["application/json"]["schema"]["$ref"]
        named |= set(schemas[reference.rpartition("/")[2]]["properties"])
        yield 413
    if not public:
        yield from (400, 401, 403, 503)
    if named & _NAMING or any(parameter["in"] == "path" for parameter in parameters):
        yield 404
    if method in _CHANGES:
        yield 409
