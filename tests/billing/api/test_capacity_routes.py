"""The evidence over the admin API: exact, each tenant's own only, and asked for in bounds."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, insert

from billing.contracts import lifecycle
from billing.schema.capacity import contract_minute
from tests.billing.api.conftest import SERVICE_KEY
from tests.billing.contracts.selling import T0, furnish, terms

AS_SERVICE = {"authorization": f"Bearer {SERVICE_KEY}"}
MINUTE = 60_000
PATH = "/admin/v1/capacity"


@pytest.fixture
def contracts(database: Engine) -> dict[str, str]:
    """Ids of the contracts of acme and bolt by name; three minutes of evidence of each."""
    with database.begin() as connection:
        shop = furnish(connection)
        ids = {}
        for number, name in enumerate(("acme", "bolt")):
            draft = lifecycle.draft(connection, terms(shop.tenants[name], 10 + number), now_ms=T0)
            ids[name] = lifecycle.sign(connection, draft.contract_id, now_ms=T0).contract_id
            connection.execute(insert(contract_minute), [
                {"contract_id": ids[name], "minute_ms": T0 + minute * MINUTE, "assigned_mu": 600_000,
                "used_mu": 400_001, "lent_mu": 500,
                 "borrowed_mu": 0, "refused": minute, "cut_mu": 0, "missing_mu": 10 * minute}
                for minute in range(3)
            ])  # fmt: skip
    return ids


def ask(client: TestClient, **query: Any) -> Any:
    return client.get(PATH, params=query, headers=query.pop("headers", None))


def test_minutes_and_their_sum_are_in_exact_units(admin: TestClient, contracts: dict[str, str]) -> None:
    report = ask(admin, tenant="acme", **{"from": T0, "until": T0 + 2 * MINUTE}).json()
    assert [line["minute"] for line in report["data"]] == ["2027-01-15T08:00:00Z", "2027-01-15T08:01:00Z"]
    assert report["data"][1] | {"tenant": None} == {
        "contract": contracts["acme"], "tenant": None, "tenant_name": "acme", "pool": "llama",
        "minute": "2027-01-15T08:01:00Z", "assigned": "600", "used": "400.001", "lent": "0.5",
        "borrowed": "0", "refused": 1, "shortfall": "0.01", "missing": "0.01",
        "limited": {"requests": 0, "concurrency": 0, "cancels": 0},
    }  # fmt: skip
    (total,) = report["total"]
    assert (total["assigned"], total["used"], total["refused"]) == ("1200", "800.002", 1)
    assert (report["from"], report["until"]) == ("2027-01-15T08:00:00Z", "2027-01-15T08:02:00Z")
    everyone = ask(admin, **{"from": T0, "until": T0 + 9 * MINUTE}).json()
    assert len(everyone["data"]) == 6
    assert len(everyone["total"]) == 2


def test_a_tenant_sees_its_own_only(nobody: TestClient, contracts: dict[str, str]) -> None:
    span = {"from": T0, "until": T0 + 9 * MINUTE}
    own = nobody.get(PATH, params={"tenant": "acme", **span}, headers=AS_SERVICE).json()
    assert {line["contract"] for line in own["data"]} == {contracts["acme"]}
    theirs = nobody.get(
        PATH, params={"tenant": "acme", "contract": contracts["bolt"], **span}, headers=AS_SERVICE
    )
    nobodys = nobody.get(PATH, params={"tenant": "acme", "contract": "con_none", **span}, headers=AS_SERVICE)
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.text.replace(contracts["bolt"], "") == nobodys.text.replace("con_none", "")
    unnamed = nobody.get(PATH, params=span, headers=AS_SERVICE)
    assert (unnamed.status_code, unnamed.json()["error"]["param"]) == (400, "tenant")


def test_without_a_span_it_is_the_last_hour(admin: TestClient, contracts: dict[str, str]) -> None:
    assert len(ask(admin, until=T0 + 3 * MINUTE).json()["data"]) == 6
    assert ask(admin, until=T0 + 64 * MINUTE).json()["data"] == []
    assert ask(admin).json()["data"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [({"from": T0, "until": T0}, "until"), ({"from": "yesterday"}, "from"), ({"until": -1}, "until"),
    ({"contract": "{x}"}, "contract")],
)  # fmt: skip
def test_bad_spans_are_refused(
    admin: TestClient, contracts: dict[str, str], query: dict[str, Any], param: str
) -> None:
    answer = ask(admin, **query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_more_than_a_week_of_minutes_is_refused_and_a_week_is_not(
    admin: TestClient, database: Engine, contracts: dict[str, str]
) -> None:
    week = 7 * 24 * 60
    with database.begin() as connection:
        connection.execute(insert(contract_minute), [
            {"contract_id": contracts["acme"], "minute_ms": T0 + minute * MINUTE, "assigned_mu": 1,
            "used_mu": 0, "lent_mu": 0,
             "borrowed_mu": 0, "refused": 0, "cut_mu": 0, "missing_mu": 0}
            for minute in range(3, week + 1)
        ])  # fmt: skip
    one = {"contract": contracts["acme"], "from": T0}
    assert len(ask(admin, **one, until=T0 + week * MINUTE).json()["data"]) == week
    answer = ask(admin, **one, until=T0 + (week + 1) * MINUTE)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "from")
