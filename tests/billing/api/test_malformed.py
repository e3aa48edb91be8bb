"""Bad input gets a 4xx in the one shape of an error, whatever it is; FastAPI's own shapes never show."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.api.buffered_body import BODY_BYTES_MAX
from billing.api.rights import RIGHTS
from tests.examples import examples

Make = Callable[..., dict[str, Any]]
WRITES = [
    ("POST", "tenants"), ("PATCH", "tenants/acme"), ("POST", "projects"), ("POST", "keys"), ("PUT", "limits"),
    ("POST", "models"),
    ("PATCH", "models/m"), ("POST", "instances"), ("POST", "prices"), ("POST", "calibrations"), ("POST",
    "calibrations/absorbed"),
    ("POST", "contracts"), ("POST", "contracts/quote"), ("POST", "contracts/con_0/amend"), ("POST",
    "contracts/con_0/notice"),
    ("PATCH", "pools/m"), ("POST", "instances/i/restart"), ("PUT", "launches/m"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def some(made: Make) -> None:
    made("tenants", name="acme")
    made("models", name="m", context_tokens=100)


def refused(answer: Any, *statuses: int) -> dict[str, Any]:
    assert answer.status_code in statuses, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert answer.headers["x-request-id"].startswith("adm_")
    return error


BODIES = {
    "nothing": b"",
    "not json": b"{",
    "a list": b"[]",
    "null": b"null",
    "a number": b"7",
    "nan": b'{"name": NaN}',
    "not utf-8": b'{"name": "\xff"}',
    "deep": b"[" * 100_000,
    "a huge integer": b'{"concurrency": ' + b"9" * 5000 + b"}",
}


def test_each_write_refuses_bodies_that_are_no_objects(admin: TestClient):
    for method, path in WRITES:
        for name, body in BODIES.items():
            headers = {"content-type": "application/json"}
            answer = admin.request(method, f"/admin/v1/{path}", content=body, headers=headers)
            assert refused(answer, 400), (path, name)


NAMED = {"name": "m", "pool": "m", "tenant": "acme", "number": "INV-000001", "percent": "1"}


def test_fault_21_each_write_refuses_fields_it_does_not_know(admin: TestClient, api_document: dict[str, Any]):
    bodies = 0
    for route in RIGHTS:
        method, template = route.split(" ", 1)
        path = template.replace(":path}", "}")
        if "requestBody" not in api_document["paths"].get(path, {}).get(method.lower(), {}):
            continue
        url = re.sub(r"\{(\w+)\}", lambda found: NAMED.get(found[1], "x"), path)
        bodies += 1
        for field in ("role", "tenant_id", "spend", "hash", "__proto__"):
            # What a role is to an admin key, `tenant_id` is to a tenant.
            if field == "role" and path == "/admin/v1/admin-keys":
                continue
            error = refused(admin.request(method, url, json={field: 1}), 400)
            assert error["code"] in {"unknown_parameter", "missing_parameter"}, (path, field, error)
            if method == "PATCH" and path != "/admin/v1/projects/{project}":
                assert error["code"] == "unknown_parameter" or path.endswith("adapters/{name}"), path
    assert bodies > 35


def test_fault_21_no_body_has_room_for_fields_that_it_does_not_name(api_document: dict[str, Any]):
    schemas = api_document["components"]["schemas"]
    seen: set[str] = set()

    def walk(schema: dict[str, Any], place: str) -> None:
        name = schema.get("$ref", "").rpartition("/")[2]
        if name and name not in seen:
            seen.add(name)
            walk(schemas[name], name)
        if "properties" in schema or schema.get("type") == "object":
            assert schema.get("additionalProperties", True) is not True, place
        inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ()), *schema.get("oneOf", ())]
        for each in [*inner, schema.get("items", {}), schema.get("additionalProperties", {})]:
            if isinstance(each, dict) and each:
                walk(each, place)

    for path, operations in api_document["paths"].items():
        for operation in operations.values():
            if "requestBody" in operation:
                walk(operation["requestBody"]["content"]["application/json"]["schema"], path)
    assert len(seen) > 35


NEGATIVE = [
    ("POST", "prices", {"model": "m", "input": "-1", "output": "1"}, "input"),
    ("POST", "prices", {"model": "m", "input": "1", "output": "-1"}, "output"),
    ("POST", "prices", {"model": "m", "input": "1", "cached_input": "-0.1", "output": "1"}, "cached_input"),
    ("POST", "prices", {"model": "m", "input": "1", "cache_write": "-1", "output": "1"}, "cache_write"),
    ("POST", "cost-prices", {"model": "m", "input": "-1", "output": "1"}, "input"),
    ("PUT", "budgets", {"tenant": "acme", "usd": "-1", "per": "day"}, "usd"),
    ("POST", "credits", {"tenant": "acme", "usd": "-5"}, "usd"),
    ("POST", "machines", {"pool": "m", "usd_per_hour": "-2"}, "usd_per_hour"),
    ("POST", "makers", {"model": "m", "maker": "lab", "input": "-1", "output": "1"}, "input"),
]


def test_fault_21_no_price_and_no_amount_is_negative(admin: TestClient):
    for method, path, body, param in NEGATIVE:
        error = refused(admin.request(method, f"/admin/v1/{path}", json=body), 400)
        assert error["param"] == param, (path, error)
    for noun in ("prices", "cost-prices", "budgets", "credits", "machines"):
        assert admin.get(f"/admin/v1/{noun}").json()["data"] == [], noun


def test_a_body_of_another_type_is_refused(admin: TestClient):
    for method, path in WRITES:
        refused(admin.request(method, f"/admin/v1/{path}", data={"name": "x"}), 400, 415)


def test_a_name_that_is_not_one_is_refused(admin: TestClient):
    long = "a" * 129
    for name in ("", " ", "a b", "{x}", "a{", "ä", long, "../x", "a//b", "/a", "a/", "a\x00", "ten_1", "x\n"):
        error = refused(admin.post("/admin/v1/tenants", json={"name": name}), 400)
        assert error["param"] == "name", name


def test_a_lone_surrogate_is_refused(admin: TestClient):
    for path, body in (
        ("tenants", rb'{"name": "\ud800"}'),
        ("keys", rb'{"tenant": "acme", "name": "\ud800"}'),
    ):
        answer = admin.post(f"/admin/v1/{path}", content=body, headers={"content-type": "application/json"})
        refused(answer, 400)


OUT_OF_RANGE = [
    ("PUT", "limits", {"tenant": "acme", "requests_per_minute": -1}, "requests_per_minute"),
    ("PUT", "limits", {"tenant": "acme", "requests_per_minute": True}, "requests_per_minute"),
    ("PUT", "limits", {"tenant": "acme", "requests_per_minute": "5"}, "requests_per_minute"),
    ("PUT", "limits", {"tenant": "acme", "requests_per_minute": 1.0}, "requests_per_minute"),
    ("PUT", "limits", {"tenant": "acme", "units_per_minute": 10**30}, "units_per_minute"),
    ("PUT", "limits", {"tenant": "acme", "model": "**", "concurrency": 1}, "model"),
    ("PUT", "limits", {"tenant": "acme"}, "requests_per_minute"),
    ("PUT", "limits", {"concurrency": 1}, "tenant"),
    ("POST", "models", {"name": "x", "context_tokens": 0}, "context_tokens"),
    ("POST", "models", {"name": "x", "context_tokens": 10, "default_max_tokens": 11}, "default_max_tokens"),
    ("POST", "models", {"name": "x", "context_tokens": 10, "routes": []}, "routes"),
    ("POST", "models", {"name": "x", "context_tokens": 10, "routes": ["admin"]}, "routes.0"),
    ("POST", "models", {"name": "x", "context_tokens": 10, "weights": {"w_in_mu": -1, "w_cached_mu": 1,
    "w_out_mu": 1}}, "weights.w_in_mu"),
    ("POST", "models", {"name": "x", "context_tokens": 10, "chat_template_kwargs": ["a b"]},
    "chat_template_kwargs.0"),
    ("PATCH", "models/m", {"weights": {"w_in_mu": 1, "w_cached_mu": 1, "w_out_mu": 1, "version": 1}},
    "weights.version"),
    ("PATCH", "models/m", {"default_max_tokens": 101}, "default_max_tokens"),
    ("PATCH", "models/m", {"max_body_bytes": 1023}, "max_body_bytes"),
    ("PATCH", "models/m", {"max_body_bytes": 2**30 + 1}, "max_body_bytes"),
    ("PATCH", "tenants/acme", {"status": "deleted"}, "status"),
    ("PATCH", "tenants/acme", {"redis_down": {"policy": "local_lease"}}, "redis_down.local_lease.requests"),
    ("PATCH", "tenants/acme", {"redis_down": {"policy": "ignore"}}, "redis_down"),
    ("POST", "keys", {"tenant": "acme", "expires_at_ms": "tomorrow"}, "expires_at_ms"),
    ("POST", "keys", {"tenant": "acme", "expires_at_ms": 10**17}, "expires_at_ms"),
    ("POST", "prices", {"model": "m", "input": 0.15, "output": "1"}, "input"),
    ("POST", "prices", {"model": "m", "input": "1", "output": "1", "from": -1}, "from"),
    ("POST", "prices", {"model": "m", "input": "1", "output": "1", "from_ms": 1}, "from_ms"),
]  # fmt: skip


def test_a_field_out_of_its_range_is_named(admin: TestClient):
    for method, path, body, param in OUT_OF_RANGE:
        error = refused(admin.request(method, f"/admin/v1/{path}", json=body), 400)
        assert error["param"] == param, (path, body)


MISSING = [
    "tenants/nobody", "models/nothing", "keys?tenant=nobody", "projects?tenant=nobody",
    "limits?tenant=nobody", "usage?tenant=nobody", "limits?key_id=key_0", "prices?model=nothing",
    "requests/req_0", "requests/req_0?tenant=acme", "requests/req_0?tenant=nobody",
]  # fmt: skip


def test_what_is_not_there_is_404(admin: TestClient):
    for path in MISSING:
        assert refused(admin.get(f"/admin/v1/{path}"), 404)["code"] == "not_found", path


def test_what_is_named_but_not_there_is_404(admin: TestClient):
    for method, path, body in (
        ("POST", "keys", {"tenant": "nobody"}),
        ("PUT", "limits", {"tenant": "acme", "model": "nothing", "concurrency": 1}),
        ("POST", "models", {"name": "x", "context_tokens": 1, "visible": ["nobody"]}),
        ("POST", "prices", {"model": "nothing", "input": "1", "output": "1"}),
        ("PATCH", "models/nothing", {"status": "retired"}),
        ("DELETE", "keys/key_0", None),
        ("DELETE", "instances/ins-0", None),
    ):
        error = refused(admin.request(method, f"/admin/v1/{path}", json=body), 404)
        assert error["code"] == "not_found"


def test_paths_and_queries_are_checked_as_bodies_are(admin: TestClient):
    for path in (
        "tenants/%00",
        "tenants/%7B%7D",
        "requests/a%00",
        "keys?tenant=%00",
        "usage?from=x",
        "usage?until=-1",
    ):
        refused(admin.get(f"/admin/v1/{path}"), 400)


def test_a_method_that_a_route_does_not_answer_is_405(admin: TestClient):
    answer = admin.put("/admin/v1/tenants")
    assert refused(answer, 405)["code"] == "method_not_allowed"
    assert "allow" in answer.headers


def test_a_body_too_large_is_refused_by_its_length_or_as_it_grows(admin: TestClient):
    large = b" " * (BODY_BYTES_MAX + 1)
    refused(admin.post("/admin/v1/tenants", content=large), 413)
    parts = (part for part in [large[:-1], b"  "])
    refused(admin.post("/admin/v1/tenants", content=parts, headers={"content-type": "application/json"}), 413)


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "dup1", "name": "dup2"}',
        b'{"name": "dup1", "redis_down": {"policy": "refuse", "policy": "refuse"}}',
        b'{"name": "dup1", "\\u006eame": "dup2"}',
        b'{"name": "dup1", "redis_down": [[{"name": 1, "name": 2}]]}',
    ],
)
def test_a_key_given_twice_is_refused_at_every_depth(admin: TestClient, body: bytes):
    answer = admin.post("/admin/v1/tenants", content=body, headers={"content-type": "application/json"})
    error = refused(answer, 400)
    assert (error["code"], error["param"]) == ("duplicate_key", "policy" if b"policy" in body else "name")
    assert [tenant["name"] for tenant in admin.get("/admin/v1/tenants").json()["data"]] == ["acme"]


def test_an_error_does_not_repeat_the_body(admin: TestClient):
    answer = admin.post(
        "/admin/v1/tenants", json={"name": "canary canary", "kind": "canary", "canary" * 20: 1}
    )
    assert "canary" not in answer.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "name", "kind", "on_demand", "redis_down", "status", "stop_streams", "tenant", "project", "expires_at_ms",
    "key_id", "model", "requests_per_minute", "units_per_minute", "concurrency", "context_tokens", "visible",
    "owner", "routes", "engine_model", "vocabulary_tokens", "default_max_tokens", "weights",
    "chat_template_kwargs", "pool", "url", "key", "instance", "force", "input", "max_body_bytes",
    "cached_input", "output", "from", "until", "units", "ramp", "notice_days", "overflow", "spill_units",
    "headroom", "minimum_until", "by", "instances", "set_aside", "draft",
]  # fmt: skip
PLAUSIBLE = st.sampled_from(
    [
        "acme",
        "m",
        "default",
        "everyone",
        "active",
        "0.5",
        "*",
        0,
        1,
        2**31,
        2**63,
        ["acme"],
        {"policy": "refuse"},
        {},
    ]
)


@settings(
    max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(WRITES), st.dictionaries(st.sampled_from(FIELDS), JSON | PLAUSIBLE, max_size=6))
def test_no_body_makes_the_server_fail(admin: TestClient, write: tuple[str, str], body: dict[str, Any]):
    method, path = write
    content = json.dumps(body)
    answer = admin.request(
        method, f"/admin/v1/{path}", content=content, headers={"content-type": "application/json"}
    )
    if not answer.is_success:
        refused(answer, 400, 404, 409, 424)


@settings(
    max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(["tenants/{}", "models/{}", "keys?tenant={}", "limits?tenant={}", "limits?key_id={}",
    "usage?by={}", "usage?from={}",
                     "prices?model={}", "requests/{}"]),
    st.text(max_size=12),
)  # fmt: skip
def test_no_path_or_query_makes_the_server_fail(admin: TestClient, template: str, text: str):
    quoted = "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))
    answer = admin.get("/admin/v1/" + template.format(quoted))
    if not answer.is_success:
        refused(answer, 400, 404)


@pytest.mark.parametrize("number", ["INV-1", "inv-000001", "1", "INV-000001x"])
def test_another_form_of_a_documents_number_is_named_with_an_example(admin: TestClient, number: str):
    for path in ("", "/document", "/pdf", "/check"):
        answer = admin.get(f"/admin/v1/invoices/{number}{path}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "number")
        assert "such as INV-000001" in answer.json()["error"]["message"]
