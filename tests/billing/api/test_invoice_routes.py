"""Invoices and credit notes over HTTP: what is final is signed, and says who issued it."""

from dataclasses import replace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from billing.accounts.roles import Role
from billing.ledger.entries import ReceivedEvent, record_events
from tests.billing.api.conftest import KeyOf, bearing
from tests.billing.events import event

CLOSE = {"tenant": "acme", "period": "2023-11"}


@pytest.mark.usefixtures("key_file")
def test_nothing_becomes_final_without_a_key_and_an_issuer(
    app: FastAPI, admin: TestClient, key_of: KeyOf, database: Engine
) -> None:
    def answered(path: str, **body: str) -> str:
        answer = admin.post(f"/admin/v1/invoices{path}", json=body)
        return str(answer.json()["error"]["code"] if answer.is_error else answer.json()["number"])

    def waits(**headers: str) -> str | None:
        draft = admin.get("/admin/v1/invoices/draft", params=CLOSE, headers=headers).json()
        assert draft["document"]["net"] == "3.00"
        said: str | None = draft["waits"]
        return said

    tenant = admin.post("/admin/v1/tenants", json={"name": "acme"}).json()["tenant"]
    admin.post("/admin/v1/models", json={"name": "m", "context_tokens": 4096})
    admin.post("/admin/v1/prices", json={"model": "m", "input": "1", "output": "2", "from": 0})
    used = event("req_1", (10**6, 0, 10**6), tenant=tenant, model="m")
    with database.begin() as connection:
        record_events(connection, [ReceivedEvent.read(used.to_json())])
    of_tenant = bearing(key_of(Role.BILLING))
    whole = replace(app.state.control, issuer="Lab Ltd")
    nobody, keyless = replace(whole, issuer=" "), replace(whole, evidence_key_file=None)

    app.state.control = replace(nobody, evidence_key_file=None)
    said = str(waits())
    assert "TAAS_EVIDENCE_KEY_FILE" in said
    assert "TAAS_ISSUER" in said
    assert waits(**of_tenant) is None, "that is not the tenant's to know"
    for control, code in ((keyless, "no_evidence"), (nobody, "no_issuer"), (whole, "INV-000001")):
        app.state.control = control
        assert answered("", **CLOSE) == code
    note = {"usd": "1.00", "reason": "an outage"}
    app.state.control = keyless
    assert answered("/INV-000001/credit-notes", **note) == "no_evidence"
    # An earlier version issued it without a name.
    with database.begin() as connection:
        connection.execute(text("set local session_replication_role = replica"))
        connection.execute(
            text("update invoice set facts = jsonb_set(facts::jsonb, '{facts,issuer}', to_jsonb(''::text))")
        )
    for control, code in ((nobody, "no_issuer"), (whole, "CN-000001")):
        app.state.control = control
        assert answered("/INV-000001/credit-notes", **note) == code
    made = [admin.get(f"/admin/v1/invoices/{number}").json() for number in ("INV-000001", "CN-000001")]
    assert all(each["signature"] for each in made)
    assert [each["document"]["issuer"] for each in made] == ["Lab Ltd", "Lab Ltd"]
