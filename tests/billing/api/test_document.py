"""What the API says of itself is true: every route is there, and what it really answers is as the document
says.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from msgspec.structs import replace
from openapi_spec_validator import OpenAPIV31SpecValidator
from sqlalchemy import Engine, select

from billing.accounts import admin_keys
from billing.accounts.audit_log import check
from billing.accounts.roles import Role
from billing.api.rights import RIGHTS
from billing.ledger.entries import ReceivedEvent, record_events
from billing.schema.accounts import audit_log
from tests.billing.api.conftest import operation_of
from tests.billing.events import event

Make = Callable[..., dict[str, Any]]
WEIGHTS = {"w_in_mu": 1000, "w_cached_mu": 100, "w_out_mu": 4000}


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


# Of answers that are no JSON.
FORMS = {
    "pdf": ["application/pdf"],
    "export": ["application/x-ndjson", "text/csv", "application/vnd.apache.parquet"],
}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_it_is_a_valid_document_of_every_route(app: FastAPI, document: dict[str, Any]):
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema]
    said = {(method, path) for method, path, _ in operations(document)}
    assert said == {(method, route.path_format) for route in routes for method in route.methods}
    assert {path for _, path in said} >= {"/healthz", "/admin/v1/contracts/{contract_id}/sign"}


def test_each_operation_says_its_right_its_answer_and_its_refusals(document: dict[str, Any]):
    rights = {re.sub(":path", "", route): roles for route, roles in RIGHTS.items()}
    ids = set()
    for method, path, operation in operations(document):
        roles = rights[f"{method} {path}"]
        public = Role.NOBODY in roles
        assert operation.get("x-roles") == (None if public else sorted({"root", *roles})), path
        schemes = [] if public else ["adminKey"] + ["serviceKey"] * (Role.SERVICE in roles)
        assert [name for each in operation["security"] for name in each] == schemes, path
        ids.add(operation["operationId"])
        assert not {"422", "default"} & set(operation["responses"])
        for status, response in operation["responses"].items():
            if status == "200" and (form := FORMS.get(path.rpartition("/")[2])):
                assert list(response["content"]) == form
                continue
            schema = response["content"]["application/json"]["schema"]
            assert schema, (path, status)
            if status[0] in "45" and path != "/healthz":
                assert schema == {"$ref": "#/components/schemas/Refusal"}
        needed = {"/healthz": {"200", "503"}}.get(path, {"401", "403", "503"})
        assert needed <= set(operation["responses"]), path
        assert ("requestBody" in operation) <= ({"400", "413"} <= set(operation["responses"]))
        assert ("{" in path) <= ("404" in operation["responses"])
        keys = [each for each in operation.get("parameters", []) if each["name"] == "Idempotency-Key"]
        assert len(keys) == (method == "POST")
    assert len(ids) == len(list(operations(document)))


def test_no_value_is_left_unsaid(document: dict[str, Any]):
    """Every field has a type; only what a contract's history, a decision, a provider's usage, the audit log
    and a document hold beside is free.
    """
    free = []

    def walk(schema: Any, place: str) -> None:
        if schema in ({}, True):
            free.append(place)
        elif isinstance(schema, dict):
            if schema.get("type") == "object" and "properties" not in schema:
                walk(schema.get("additionalProperties", {}), f"{place}.*")
            inner = dict(schema.get("properties", {})) | dict(
                enumerate([*schema.get("anyOf", ()), *schema.get("oneOf", ())])
            )
            for name, each in inner.items():
                walk(each, f"{place}.{name}")
            if "items" in schema:
                walk(schema["items"], f"{place}[]")

    for name, schema in document["components"]["schemas"].items():
        assert "-" not in name, "two models of one name"
        walk(schema, name)
    assert {re.sub(r"\.\d", "", place) for place in free} == {
        "HistoryEntry.detail.*", "ReclaimEntry.detail.*", "ReceiptAnswer.decision.*",
        "ReceiptProvider.usage.*", "AuditEntry.before.*", "AuditEntry.after.*", "InvoiceAnswer.document.*",
        "InvoiceDraft.document.*",
    }  # fmt: skip


def test_moments_and_decimals_are_said_as_they_are_taken(
    document: dict[str, Any], admin: TestClient, made: Make
):
    fields = document["components"]["schemas"]["NewContract"]["properties"]
    moments = [(each["type"], each.get("format")) for each in fields["until"]["anyOf"]]
    assert moments == [("string", "date-time"), ("string", "date"), ("integer", "int64"), ("string", None)]
    assert fields["burst_seconds"]["default"] == 1
    made("tenants", name="acme")
    made("models", name="m", context_tokens=4096)
    for until in ("2101-01-01T00:00:00Z", "2101-01-01", 4_133_980_800_000, "+90d"):
        for units in (1, 1.5, "1.5"):
            body = {
                "tenant": "acme",
                "pool": "m",
                "units": units,
                "until": until,
                "notice_days": 1,
                "draft": True,
            }
            assert not list(validator(document, "NewContract").iter_errors(body))
            assert made("contracts", **body)["state"] == "draft"
    for wrong in (
        {"units": True},
        {"units": -1},
        {"notice_days": 3661},
        {"until": "soon"},
        {"overflow": "x"},
    ):
        assert list(validator(document, "NewContract").iter_errors(body | wrong)), wrong
        assert admin.post("/admin/v1/contracts", json=body | wrong).status_code == 400, wrong


def validator(document: dict[str, Any], name: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": document["components"]},
        format_checker=Draft202012Validator.FORMAT_CHECKER,
    )


class Checked:
    """Holds every answer against the document. It knows which operations have succeeded, and by the ids of
    their requests those that changed something.
    """

    def __init__(self, app: FastAPI, admin: TestClient) -> None:
        self._app = app
        self._admin = admin
        self._components = app.openapi()["components"]
        self.succeeded: set[str] = set()
        self.changes: dict[str, str] = {}

    def __call__(self, method: str, path: str, /, **body: Any) -> Any:
        full = path if path.startswith("/") else f"/admin/v1/{path}"
        answer = self._admin.request(method, full, json=body or None)
        operation = operation_of(self._app, answer)
        assert operation is not None, path
        assert answer.is_success or answer.status_code == 400, answer.text
        schema = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
        schema = {**schema, "components": self._components}
        checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        assert [error.message for error in checker.iter_errors(answer.json())] == [], (path, answer.text)
        if answer.is_success:
            self.succeeded.add(operation["operationId"])
            if method != "GET" and not body.get("dry_run") and not path.endswith(("/quote", "/what-if")):
                self.changes[answer.headers["x-request-id"]] = f"{method} {path}"
        return answer.json()


def ask_the_catalogue(ask: Checked, database: Engine) -> str:
    """The id of a key."""
    lease = {"policy": "local_lease", "requests": 1, "units": 5}
    acme = ask("POST", "tenants", name="acme", redis_down=lease)["tenant"]
    ask("PATCH", "tenants/acme", weight=2)
    project = ask("POST", "projects", tenant="acme", name="side")["project"]
    ask("PATCH", "projects/side", tenant="acme", name="aside")
    ask("POST", "models", name="m", context_tokens=4096, visible=["acme"])
    ask("PATCH", "models/m", visible="everyone")
    ask("POST", "adapters", model="m", name="a", path="/srv/a", owner="acme")
    ask("PATCH", "adapters/m:a", path="/srv/b")
    key = ask("POST", "keys", tenant="acme", models=["m"], expires_at_ms="2999-01-01")["key_id"]
    ask("PATCH", f"keys/{key}", name="ci")
    ask("DELETE", f"keys/{ask('POST', f'keys/{key}/rotate', overlap_seconds=60)['key_id']}")
    ask("PUT", "limits", tenant="acme", requests_per_minute=5)
    ask("PUT", "limits", key_id=key, concurrency=1)
    ask("PUT", "budgets", key_id=key, usd="1.00", per="total")
    raised = {"usd": "1", "until": "2999-01-01T00:00:00Z"}
    sink = ask("POST", "sinks", url="https://meters.example", format="lago", bearer="b")["sink"]
    for path in (f"sinks/{sink}/pause", f"sinks/{sink}/resume"):
        ask("POST", path)
    for path in ("sinks", f"sinks/{sink}/skipped"):
        ask("GET", path)
    ask("DELETE", f"sinks/{sink}")
    budget = ask("PUT", "budgets", tenant="acme", project="default", usd="5", per="month", raised=raised)
    ask("PUT", f"budgets/{budget['budget']}/alerts", percent=80, url="https://hooks.example/budgets")
    ask("DELETE", f"budgets/{budget['budget']}/alerts/80")
    ask("DELETE", f"budgets/{budget['budget']}")
    price = {"input": "1", "output": "2"}
    ask("POST", "prices", model="m", **price, **{"from": 1_800_000_000_000})
    later = ask("POST", "prices", model="m", **price, **{"from": "2999-01-01"})["price_id"]
    ask("DELETE", f"prices/{later}")
    ask("POST", "prices/list", prices=[{"model": "m", **price, "class": "flex"}], dry_run=True)
    ask("POST", "cost-prices", model="m", **price, cache_write="1.25", **{"from": 1_700_000_000_000})
    later = ask("POST", "cost-prices", model="m", **price, **{"from": "2999-01-01"})["price_id"]
    ask("DELETE", f"cost-prices/{later}")
    ended = event("req_1", (1000, 200, 50), tenant=acme, project=project, model="m")
    bought = replace(
        event("req_2", (9, 2, 5), tenant=acme, project=project, model="m"),
        provider={"kind": "openai", "model": "gpt", "usage": {"prompt_tokens": 9}},
    )
    with database.begin() as connection:
        record_events(connection, [ReceivedEvent.read(each.to_json()) for each in (ended, bought)])
    ask("POST", "prices/backfill", model="m", dry_run=True, **{"from": 0})
    ask("POST", "instances", model="m", url="http://127.0.0.1:1", instance="i-1", force=True)
    window = {"days": 7, "starts": "2026-11-02"}
    ask("PUT", "budgets", tenant="acme", usd="5", per="window", window=window)
    ask("PUT", "credits/prepaid", tenant="acme", prepaid=True)
    ask("PUT", "credits/prepaid", tenant="acme", prepaid=False)
    ask("POST", "credits", tenant="acme", usd="5", expires="2999-01-01", note="order 7")
    tiers = [{"above": "100", "percent": 5}]
    ask("POST", "terms", tenant="acme", tax_name="VAT", tax_percent="7.5", tiers=tiers, **{"from": 0})
    ask("GET", "invoices/draft?tenant=acme&period=2023-11")
    number = ask("POST", "invoices", tenant="acme", period="2023-11")["number"]
    ask("POST", f"invoices/{number}/credit-notes", usd="0.00", reason="nothing")  # refused
    ask("POST", "makers", model="m", maker="lab", share_percent="20", **{"from": 0})
    ask("POST", "makers", model="m", maker="lab", input="0.1", output="0.4")
    ask("POST", "books", month="2023-11")
    ask("GET", "books/2023-11")
    for path in ("", "/document", "/check"):
        ask("GET", f"invoices/{number}{path}")
    return str(key)


def ask_about_capacity(ask: Checked) -> str:
    """The id of a contract."""
    ask("PATCH", "pools/m", instances=4, headroom="0.1", set_aside=1)
    ask("PUT", "launches/m", model="m", instances=1)
    step = {"mix": "chat", "held_back": True, "sequences": 1, "seconds": 1.5, "uncached": 1, "cached": 0,
    "output": 1,
            "tpot_ms": None, "ttft_ms": 3.5, "error": 0.01}  # fmt: skip
    ask("POST", "calibrations", pool="m", model="m", weights=WEIGHTS, error="0.03", sequences=16,
    steps=[step],
        capacity_units_per_second="1000", tpot_target_ms=50, ttft_target_ms=1000, hardware="cpu",
        engine_version="1")  # fmt: skip
    ask("PUT", "autoscaling/m", min=0, max=4)
    epoch = ask("GET", "instances")["data"][0]["epoch"]
    ask(
        "POST",
        "calibrations/absorbed",
        run="0" * 12,
        model="m",
        instance="i-1",
        epoch=epoch,
        prompt=1,
        cached=0,
        output=1,
        started_ms=1,
    )
    common = {"tenant": "acme", "pool": "m", "until": "+1y", "notice_days": 1}
    draft = ask(
        "POST", "contracts", **common, units="12.5", draft=True, ramp=[{"from": "+30d", "units": 20}]
    )["contract"]
    ask("POST", f"contracts/{draft}/sign")
    ask("POST", f"contracts/{draft}/amend", overflow="spill", spill_units=3)
    other = ask("POST", "contracts", **common, units=1, draft=True)["contract"]
    ask("POST", f"contracts/{other}/withdraw")
    ask("POST", "contracts/quote", pool="m")
    ask("POST", "contracts/quote", pool="m", units=10_000, until="+1y")
    ask("POST", f"contracts/{draft}/notice", by="tenant")
    ask("POST", "machines", pool="m", usd_per_hour="3", kw="1.5", overhead="1.2", gpus=8)
    ask(
        "POST",
        "economics/what-if",
        price_change="-0.1",
        moves=[{"pool": "m", "instances": 1, "to_use": "idle"}],
    )
    ask("POST", "capacity-prices", contract=draft, unit_hour="0.04", sla_percent=200)
    ask("GET", f"capacity-prices?contract={draft}")
    ask("POST", "reclaims", pool="m", instances=1, use="research", dry_run=True)
    taken = ask("POST", "reclaims", pool="m", instances=1, use="idle", by="2999-01-01T00:00:00Z")["reclaim"]
    ask("GET", f"reclaims/{taken}")
    ask("POST", f"reclaims/{taken}/cancel")
    released = ask("POST", "reclaims", pool="m", instances=1, use="idle")["reclaim"]
    ask("POST", f"reclaims/{released}/release")
    return str(draft)


@pytest.mark.usefixtures("key_file")
def test_what_every_operation_answers_is_what_the_document_says(
    app: FastAPI, admin: TestClient, document: dict[str, Any], database: Engine
):
    ask = Checked(app, admin)
    key = ask_the_catalogue(ask, database)
    draft = ask_about_capacity(ask)
    for path in ("tenants", "projects", "keys", "limits", "budgets", "models", "prices", "cost-prices",
                 "pools", "instances", "adapters", "calibrations", "contracts", "reclaims", "launches",
                 "plan", "capacity", "capacity?from=2027-01-01&until=2027-01-02",
                 "machines", "economics/plan", "economics?by=quarter,month,use,pool,model,contract",
                 "scrape-targets", "audit", "reconciliation", "usage",
                 "usage?by=tenant,model,project,key,class,hour&from=0",
                 "usage?by=day", "usage?by=nothing",
                 "provider-usage?provider=openai&from=2023-11-01&until=2023-12-01", "requests/req_1",
                 "requests/req_2", f"contracts/{draft}",
                 f"contracts/{draft}/history", "tenants/acme", f"keys/{key}", f"keys/{key}/usage",
                 "usage/checkpoints?tenant=acme", "retention", "retention?days=35",
                 "models/m", "pools/m", "autoscaling", "autoscaling/m", "batches", "credits",
                 "terms?tenant=acme", "invoices", "makers", "books", "/healthz"):  # fmt: skip
        ask("GET", path)
    counted = {"day": "2023-11-15", "model": "o9", "prompt": 5, "output": 1}
    for path in ("provider-usage/compare", "provider-usage"):
        ask("POST", path, provider="openai", days=["2023-11-15"], counted=[counted])
    finding = ask("GET", "findings")["data"][0]["finding"]
    assert ask("PATCH", f"findings/{finding}", owner="ada")["state"] == "acknowledged"
    admin_key = ask("POST", "admin-keys", role="finance")["key_id"]
    ask("POST", f"admin-keys/{admin_key}/rotate", overlap_seconds=5)
    for path in ("admin-keys", f"admin-keys/{admin_key}", "audit-log"):
        ask("GET", path)
    project = ask("GET", "/v1/organization/projects")["data"][0]["id"]
    for path in ("usage/completions?start_time=1700000000", "usage/embeddings?start_time=1700000000",
                 "costs?start_time=1700000000&group_by=line_item", f"projects/{project}",
                 f"projects/{project}/api_keys", f"projects/{project}/rate_limits", "admin_api_keys",
                 "audit_logs"):  # fmt: skip
        ask("GET", f"/v1/organization/{path}")
    ask("DELETE", f"admin-keys/{admin_key}")
    ask("DELETE", f"limits?key_id={key}")
    ask("DELETE", "instances/i-1")
    ask("DELETE", "launches/m")
    ask("DELETE", "autoscaling/m")
    every = {operation["operationId"] for _, _, operation in operations(document)}
    # A request that runs needs a gateway, a restart and evidence a worker, a batch its service: all have
    # tests of their own.
    alone = {
        "retention_drop",
        "requests_stop",
        "instances_restart",
        "evidence_show",
        "evidence_show_key",
        "usage_export",
    }
    assert every - ask.succeeded == alone | {
        "batches_show", "batches_cancel", "invoices_pdf", "invoices_give_back",
    }  # fmt: skip


@pytest.mark.usefixtures("key_file")
def test_every_operation_that_changes_something_is_an_entry_of_the_audit_log(
    app: FastAPI, admin: TestClient, database: Engine
):
    ask = Checked(app, admin)
    secret = ask("POST", "admin-keys", role="finance")["key"]
    key = ask_the_catalogue(ask, database)
    ask_about_capacity(ask)
    ask("DELETE", f"limits?key_id={key}")
    for path in ("instances/i-1", "launches/m", "autoscaling/m"):
        ask("DELETE", path)
    ask("POST", "instances", model="m", url="http://127.0.0.1:2", key="engine-secret", force=True)
    with database.connect() as connection:
        rows = connection.execute(select(audit_log)).all()
        assert check(connection) == []
    logged = {row.request_id: row for row in rows}
    assert {what for request_id, what in ask.changes.items() if request_id not in logged} == set()
    assert {request_id for request_id in logged if request_id not in ask.changes} == set()
    assert {row.action for row in rows} <= {re.sub(":path", "", route) for route in RIGHTS}
    assert {(row.actor, row.role) for row in rows} == {("root", "root")}
    for row in rows:
        assert row.before is not None or row.after is not None
        for hidden in (secret, "engine-secret", admin_keys.hash_of(secret)):
            assert hidden not in str(row)


def test_the_page_that_shows_it_needs_nothing_from_elsewhere(nobody: TestClient):
    page = nobody.get("/docs")
    assert page.status_code == 200
    assert "https://" not in page.text
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        answer = nobody.get(f"/{asset}")
        assert answer.status_code == 200, asset
        assert len(answer.content) > 1000
    assert nobody.get("/docs/redoc.standalone.js").status_code == 400
    assert nobody.get("/openapi.json").json()["openapi"].startswith("3.1")
