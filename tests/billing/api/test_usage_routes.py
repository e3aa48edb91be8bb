"""Usage and receipts over the admin API: names beside ids, each tenant's own only, and exact amounts."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
import redis
from fastapi.testclient import TestClient
from msgspec.structs import replace
from sqlalchemy import Engine

from billing.api.usage_answers import ReceiptAnswer
from billing.ledger.entries import ReceivedEvent, record_events
from billing.ledger.usage_report import report_usage
from tests.billing.api.conftest import SERVICE_KEY
from tests.billing.events import event
from tests.billing.ledger.test_retention import House

Make = Callable[..., dict[str, Any]]
AS_SERVICE = {"authorization": f"Bearer {SERVICE_KEY}"}


@pytest.fixture
def used(made: Make, database: Engine) -> dict[str, Any]:
    """A tenant with a priced request of 1000 input (200 cached) and 50 output tokens; the tenant `other`
    has none.
    """
    acme = made("tenants", name="acme")
    made("tenants", name="other")
    project = made("projects", tenant="acme", name="search")
    made("models", name="m1", context_tokens=2048)
    made("prices", model="m1", input="0.10", cached_input="0.05", output="0.40", **{"from": 1})
    ended = event("req_1", (1000, 200, 50), tenant=acme["tenant"], project=project["project"])
    with database.begin() as connection:
        record_events(connection, [ReceivedEvent.read(ended.to_json())])
    return acme


def test_usage_is_grouped_with_names_and_an_exact_amount(admin: TestClient, used):
    report = admin.get(
        "/admin/v1/usage", params={"tenant": "acme", "by": "tenant,project,model", "from": 0}
    ).json()
    (line,) = report["lines"]
    assert (line["tenant"], line["tenant_name"], line["project_name"], line["model"]) == (
        used["tenant"],
        "acme",
        "search",
        "m1",
    )
    assert line["tokens"] == {"prompt": 1000, "cached": 200, "written": 0, "output": 50}
    assert line["amount"] == "0.00011"
    assert (
        admin.get("/admin/v1/usage", params={"tenant": "other", "from": 0}).json()["total"]["requests"] == 0
    )


def test_the_answers_leave_out_nothing_that_is_known(admin: TestClient, database: Engine, used):
    with database.connect() as connection:
        report = report_usage(connection, tenant=used["tenant"]).to_json()
    shown = admin.get("/admin/v1/usage", params={"tenant": "acme", "from": 0}).json()
    assert (shown["total"], shown["items"]) == (report["total"], report["items"])
    whole = replace(event(), orphan=True, ignored=("seed",))
    named = {field.alias or name for name, field in ReceiptAnswer.model_fields.items()}
    assert set(orjson.loads(whole.to_json())) - {"v"} <= named


def test_usage_is_cut_by_the_moment_a_request_ended(admin: TestClient, used):
    for since, until, count in (
        ("2023-11-14", "2023-11-15", 1),
        ("2023-11-15", None, 0),
        (None, "2023-11-14", 0),
        (1, 2, 0),
    ):
        query = {name: value for name, value in (("from", since), ("until", until)) if value is not None}
        assert admin.get("/admin/v1/usage", params=query).json()["total"]["requests"] == count, query


def test_without_a_start_usage_is_of_the_month_of_its_end(admin: TestClient, used):
    for until, since, count in (
        ("2023-11-20", "2023-11-01T00:00:00Z", 1),
        ("2023-12-01", "2023-12-01T00:00:00Z", 0),
        ("2023-11-01", "2023-11-01T00:00:00Z", 0),
    ):
        report = admin.get("/admin/v1/usage", params={"until": until}).json()
        assert (report["from"], report["total"]["requests"]) == (since, count)
    report = admin.get("/admin/v1/usage").json()
    assert report["from"][8:] == "01T00:00:00Z"
    assert report["total"]["requests"] == 0


@pytest.mark.parametrize("query", [{"from": 4_000_000_000_000}, {"from": 2_000, "until": 1_000}])
def test_a_period_that_begins_after_its_end_is_refused(admin: TestClient, query: dict[str, int]):
    refused = admin.get("/admin/v1/usage", params=query)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "from")


def test_lines_come_by_pages_and_each_page_has_the_whole_sum(admin: TestClient, database: Engine, used):
    with database.begin() as connection:
        later = [
            event(f"req_{n}", (10, 0, 1), tenant=used["tenant"], model=f"m{n}", project="prj_0")
            for n in range(2, 6)
        ]
        record_events(connection, [ReceivedEvent.read(each.to_json()) for each in later])
    asked: dict[str, Any] = {"by": "model,day", "from": 0, "limit": 2}
    pages = [admin.get("/admin/v1/usage", params=asked).json()]
    while pages[-1]["next"] is not None:
        pages.append(admin.get("/admin/v1/usage", params=asked | {"after": pages[-1]["next"]}).json())
    assert [[line["model"] for line in page["lines"]] for page in pages] == [
        ["m1", "m2"],
        ["m3", "m4"],
        ["m5"],
    ]
    assert [page["total"]["requests"] for page in pages] == [5, 5, 5]
    other = admin.get("/admin/v1/usage", params={"by": "day,model", "after": pages[0]["next"]})
    assert (other.status_code, other.json()["error"]["param"]) == (400, "after")


def test_a_receipt_is_for_its_tenant_and_the_admin_only(admin: TestClient, nobody: TestClient, used):
    path = "/admin/v1/requests/req_1"
    assert admin.get(path).json()["amount"] == "0.00011"
    for named in ("acme", used["tenant"]):
        assert (
            nobody.get(path, params={"tenant": named}, headers=AS_SERVICE).json()["billed"]["prompt"] == 1000
        )
    unknown = nobody.get("/admin/v1/requests/req_2", params={"tenant": "acme"}, headers=AS_SERVICE)
    others = nobody.get(path, params={"tenant": "other"}, headers=AS_SERVICE)
    assert unknown.status_code == others.status_code == 404
    assert others.text == unknown.text.replace("req_2", "req_1")


def test_the_service_key_stops_nothing(nobody: TestClient, used):
    assert nobody.post("/admin/v1/requests/req_1/stop", headers=AS_SERVICE).status_code == 403


def test_a_day_of_usage_events_is_dropped_when_it_is_final(
    admin: TestClient, database: Engine, raw_redis: redis.Redis
) -> None:
    house = House(database, raw_redis)
    day = {"day": datetime.fromtimestamp(house.day * 86_400, UTC).date().isoformat()}
    assert admin.post("/admin/v1/retention/drop", json=day).json()["error"]["code"] == "not_final"
    house.sign()
    house.invoice()
    house.close_books()
    due = admin.get("/admin/v1/retention?days=35").json()["due"]
    assert due[0] | {"events": 0} == {**day, "events": 0, "blocked": []}
    assert admin.post("/admin/v1/retention/drop", json=day).json()["events"] == 3
    shown = admin.get("/admin/v1/retention").json()
    assert (shown["days"], shown["due"], shown["dropped"][0]["day"]) == (None, [], day["day"])
    gone = admin.get("/admin/v1/requests/first_0")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "usage_dropped")
    assert admin.post("/admin/v1/retention/drop", json=day).json()["error"]["code"] == "already_dropped"
    assert any(each["kind"] == "dropped_day" for each in admin.get("/admin/v1/audit-log").json()["data"])
