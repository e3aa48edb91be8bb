"""Budgets by the admin API: whose they are, what is refused, and what an operator is shown."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from billing.catalogue.price_book import set_price
from tests.billing.contracts.selling import POOL, furnish

FOREVER = "2999-01-01T00:00:00Z"


@pytest.fixture
def acme(admin: TestClient) -> TestClient:
    assert admin.post("/admin/v1/tenants", json={"name": "acme"}).status_code == 201
    return admin


def put(admin: TestClient, **body: Any) -> Any:
    answer = admin.put("/admin/v1/budgets", json={"tenant": "acme", "per": "month", "usd": "5"} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_budget_is_one_for_each_owner_and_period(acme: TestClient) -> None:
    first = put(acme)
    again = put(acme, usd="7.5", raised={"usd": "0.5", "until": FOREVER})
    assert again["budget"] == first["budget"]
    assert (again["usd"], again["raised"]["usd"], again["left"]) == ("7.50", "0.50", "8.00")
    assert put(acme, usd="7.5")["raised"] is None
    others = {put(acme, per="day")["budget"], put(acme, project="default")["budget"]}
    listed = acme.get("/admin/v1/budgets", params={"tenant": "acme"}).json()["data"]
    assert {each["budget"] for each in listed} == {first["budget"], *others}
    for each in listed:
        assert acme.delete(f"/admin/v1/budgets/{each['budget']}").status_code == 200
    assert acme.get("/admin/v1/budgets").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"usd": "-1"}, 400, "usd"),
        ({"usd": "1e3"}, 400, "usd"),
        ({"usd": 1}, 400, "usd"),
        ({"usd": "1000000000.01"}, 400, "usd"),
        ({"usd": "0.0000000000001"}, 400, "usd"),
        ({"per": "week"}, 400, "per"),
        ({"tenant": None}, 400, "tenant"),
        ({"tenant": "nobody"}, 404, "tenant"),
        ({"project": "nothing"}, 404, "project"),
        ({"project": "default", "key_id": "key_1"}, 400, "key_id"),
        ({"key_id": "key_1"}, 404, "key_id"),
        ({"raised": {"usd": "1", "until": "2020-01-01"}}, 400, "raised"),
        ({"raised": {"usd": "0", "until": FOREVER}}, 400, "raised"),
        ({"raised": {"usd": "1"}}, 400, "raised.until"),
    ],
)
def test_what_is_no_budget_is_refused(
    acme: TestClient, body: dict[str, Any], status: int, param: str
) -> None:
    given = {"tenant": "acme", "per": "month", "usd": "5"} | body
    answer = acme.put("/admin/v1/budgets", json=given)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert acme.get("/admin/v1/budgets").json()["data"] == []


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.acme.example/x", "ftp://hooks.acme.example", "https://", "https://me:secret@acme.example",
        "not a url", "file:///etc/passwd", "https://acme.example/" + "x" * 2048,
    ],
)  # fmt: skip
def test_where_an_alert_must_not_go(acme: TestClient, url: str) -> None:
    budget = put(acme)["budget"]
    answer = acme.put(f"/admin/v1/budgets/{budget}/alerts", json={"percent": 80, "url": url})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "url"), answer.text


def test_the_secret_of_an_alert_is_shown_once(acme: TestClient) -> None:
    budget = put(acme)["budget"]
    body = {"percent": 80, "url": "https://hooks.acme.example/budgets"}
    made = acme.put(f"/admin/v1/budgets/{budget}/alerts", json=body).json()
    assert made["secret"].startswith("whsec_")
    listed = acme.get("/admin/v1/budgets").text
    assert body["url"] in listed
    assert made["secret"] not in listed
    assert acme.delete(f"/admin/v1/budgets/{budget}/alerts/80").status_code == 200
    assert acme.delete(f"/admin/v1/budgets/{budget}/alerts/80").status_code == 404
    assert acme.put("/admin/v1/budgets/bud_none/alerts", json=body).status_code == 404


def test_a_time_zone_moves_the_day(acme: TestClient) -> None:
    before = put(acme, per="day")
    refused = acme.patch("/admin/v1/tenants/acme", json={"time_zone": "Mars/Olympus"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "time_zone")
    moved = acme.patch("/admin/v1/tenants/acme", json={"time_zone": "Asia/Kolkata"})
    assert moved.json()["time_zone"] == "Asia/Kolkata"
    (after,) = acme.get("/admin/v1/budgets").json()["data"]
    assert after["budget"] == before["budget"]
    assert (after["from_ms"] - before["from_ms"]) % 86_400_000 == 18.5 * 3_600_000


def test_what_a_prepaid_tenant_may_use_follows_its_contracts_and_their_prices(
    admin: TestClient, made: Callable[..., dict[str, Any]], database: Engine
) -> None:
    with database.begin() as connection:
        furnish(connection)
        set_price(connection, POOL, input="1", cached_input="1", output="1", valid_from_ms=0)
    made("credits", tenant="acme", usd="100000")
    admin.put("/admin/v1/credits/prepaid", json={"tenant": "acme", "prepaid": True})
    left: list[float] = []

    def note() -> None:
        (budget,) = admin.get("/admin/v1/budgets", params={"tenant": "acme"}).json()["data"]
        left.append(float(budget["usd"]))

    note()
    signed = {"tenant": "acme", "pool": POOL, "units": 100, "until": "+1y", "notice_days": 0}
    contract = made("contracts", **signed)["contract"]
    note()
    made("capacity-prices", contract=contract, unit_hour="0.01")
    note()
    answer = admin.post(f"/admin/v1/contracts/{contract}/amend", json={"units": 50})
    assert answer.status_code == 200, answer.text
    note()
    made("terms", tenant="acme", tax_percent="10")
    note()
    assert admin.post(f"/admin/v1/contracts/{contract}/notice", json={"by": "tenant"}).status_code == 200
    note()
    assert left[0] == left[1] == 100_000
    # Capacity is kept back, less of it again, then tax; what ends now costs nothing more.
    assert left[2] < left[3] < left[0]
    assert left[4] < left[3]
    assert left[5] > left[4]
