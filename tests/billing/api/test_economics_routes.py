"""Economics by the admin API: a month worked out by hand, and what is refused."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import Engine, insert, text
from sqlalchemy.exc import DBAPIError

from billing.catalogue import tenants
from billing.catalogue.money import Money
from billing.catalogue.price_book import set_price
from billing.contracts import lifecycle, store
from billing.invoices import credit_notes, makers
from billing.invoices.close import close
from billing.invoices.lines import Terms, Tier
from billing.invoices.terms import set_capacity_price, set_terms
from billing.ledger.entries import ReceivedEvent, record_events
from billing.ledger.maker_terms import MakerTerms
from billing.schema.capacity import contract_minute
from billing.wire.usage_event import CapacityClass
from tests.billing.contracts.selling import DAY, POOL, furnish, take, terms
from tests.billing.events import event
from tests.billing.verified import KEY

HOUR = 3_600_000
PATH = "/admin/v1/economics"


def ms(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1000


NOVEMBER = {"from": "2025-11-01", "until": "2025-12-01"}


@pytest.fixture
def november(database: Engine, admin: TestClient) -> str:
    """Two machines of 1,000 units/s, for 4 USD an hour and from the 16th on for 5; one of them is research's
    from the 21st on. Acme has a contract of 500 units/s from the 15th on, with an hour's evidence, and asks
    beside it. A unit-hour of it costs 0.01 USD, of which twice is given back. The model's maker gets a
    quarter from the 16th on. Returns the contract's id.
    """
    with database.begin() as connection:
        shop = furnish(connection)
        acme, bolt = shop.tenants["acme"], shop.tenants["bolt"]
        set_price(connection, POOL, input="2", cached_input="1", output="8", valid_from_ms=0)
        starts_ms = ms("2025-11-15")
        draft = lifecycle.draft(
            connection, terms(acme, 500, starts_ms, starts_ms + 30 * DAY), now_ms=starts_ms
        )
        contract = lifecycle.sign(connection, draft.contract_id, now_ms=starts_ms).contract_id
        set_capacity_price(connection, store.find(connection, contract), "0.01", 200, starts_ms, starts_ms)
        maker = MakerTerms(model=POOL, maker="lab", from_ms=ms("2025-11-16"), share_basis_points=2500)
        makers.set_terms(connection, maker)
        take(connection, 1, ms("2025-11-21"), ms("2025-12-02"), state="released")
        minute = {"assigned_mu": 30_000_000, "borrowed_mu": 0, "refused": 0, "cut_mu": 0}
        connection.execute(insert(contract_minute), [
            {"contract_id": contract, "minute_ms": starts_ms + number * 60_000, "used_mu": 15_000_000,
             "lent_mu": 3_000_000, "missing_mu": 0 if number else 7_200_000, **minute}
            for number in range(60)
        ])  # fmt: skip
        shared = {"model": POOL, "pool": POOL}
        asked = [
            event("req_a", (1_000_000, 0, 200_000), tenant=acme, contract=contract, started_ms=starts_ms,
                  class_=CapacityClass.RESERVED, **shared),
            event("req_b", (640_000, 0, 20_000), tenant=bolt, started_ms=starts_ms + DAY, **shared),
            event("req_c", (5, 0, 5), tenant=acme, started_ms=ms("2025-12-01"), **shared),
        ]  # fmt: skip
        record_events(connection, [ReceivedEvent.read(each.to_json()) for each in asked])
    for body in (
        {"from": 0, "usd_per_hour": "4", "kw": "8", "overhead": "1.25", "gpus": 8},
        {"from": "2025-11-16", "usd_per_hour": "5"},
    ):
        assert admin.post("/admin/v1/machines", json={"pool": POOL} | body).status_code == 201
    return contract


def ask(admin: TestClient, **query: Any) -> Any:
    answer = admin.get(PATH, params=NOVEMBER | query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_month_by_hand(admin: TestClient, november: str) -> None:
    """720 hours × 2 machines × 1,000 units/s = 1,440,000 unit-hours.

    Research has one machine for 240 hours: 240,000 unit-hours and 240 × 5 = 1,200 USD. The others cost
    360 × 2 × 4 = 2,880, then 120 × 2 × 5 = 1,200, then 240 × 5 = 1,200: 5,280 USD for 1,200,000 unit-hours,
    0.0044 USD each. The contract is 16 days × 24 × 500 = 192,000 unit-hours, so it bears 844.80. In its hour
    of evidence it was used for 60 × 15,000 units = 250 unit-hours and 50 of it were lent. Acme's request did
    1,000,000 × 1 + 200,000 × 4 = 1,800,000 units, 500 unit-hours, under the contract, and bolt's 640,000 +
    20,000 × 4 = 720,000 units, 200 unit-hours: 150 more than was lent. Idle are 1,200,000 − 192,000 − 150.
    Revenue: 1 × 2 + 0.2 × 8 = 3.60 and 0.64 × 2 + 0.02 × 8 = 1.44 USD: 5.04 at list prices, 0.0072 an hour.
    The contract's capacity is 1,920 USD, less 2 × 0.01 for the 7,200 units, 2 unit-hours, that were missing:
    1,925 in all. The maker gets a quarter of bolt's, 0.36 USD, and of the contract's capacity from the 16th
    on, 1,800 USD: 450.36. All 1,440,000 at list prices would be 10,368 USD; 1,925 are 18.57 % of that.
    """
    report = ask(admin, by="quarter,use")
    assert [(line["quarter"], line["use"]) for line in report["lines"]] == [
        ("2025-Q4", "external"), ("2025-Q4", "research")
    ]  # fmt: skip
    external, research = report["lines"]
    total = report["total"]
    assert (external["cost"], research["cost"], total["cost"]) == ("5730.36", "1200.00", "6930.36")
    assert (total["revenue"], total["margin"]) == ("1925.00", "-5005.36")
    assert external["unit_hours"] == {
        "calibrated": "1200000", "sold": "192100", "lent": "50", "idle": "1007850", "other": "0",
        "used": "700",
    }  # fmt: skip
    assert research["unit_hours"]["other"] == research["unit_hours"]["calibrated"] == "240000"
    assert total["commitment"] == {
        "total_commitment": "192000", "used_commitment": "250", "unused_commitment": "191750",
        "short_commitment": "2", "utilization_percentage": "0.13",
    }  # fmt: skip
    assert (total["revenue_capacity"], total["credits"]) == ("1920.00", "0.04")
    assert (total["machine_hours"], total["gpu_hours"], total["kwh"]) == ("1440", "11520", "14400")
    # 6,930.36 ÷ 14,400.
    assert total["per_kwh"]["cost"] == "0.481275"
    assert total["economic_utilization_percentage"] == "18.57"
    by_contract = {line["contract"]: line for line in ask(admin, by="contract")["lines"]}
    assert (by_contract[november]["cost"], by_contract[november]["revenue"]) == ("1294.80", "1923.56")
    by_model = {line["model"]: line for line in ask(admin, by="model,pool")["lines"]}
    assert by_model[POOL]["revenue"] == "5.04"
    # 500 + 150 unit-hours × 0.0044, and what the maker gets.
    assert (by_model[POOL]["cost_machines"], by_model[POOL]["cost_makers"]) == ("2.86", "450.36")
    ways = [
        "", "quarter", "month", "use", "pool", "model", "contract", "month,use,pool,model,contract"
    ]  # fmt: skip
    assert all(ask(admin, by=by)["total"] == total for by in ways)
    assert ask(admin, until="2025-11-01")["lines"] == []


def test_the_revenue_of_a_tenant_is_its_invoice(
    admin: TestClient, november: str, database: Engine, raw_redis: redis.Redis
) -> None:
    """Half off beyond 1 USD of tokens: 3.60 − 1.30 + 1,920 − 0.04 = 1,922.26 USD, and bolt's 1.44. A
    credit note gives 10 back.
    """
    with database.begin() as connection:
        acme = tenants.find(connection, "acme")
        set_terms(connection, acme.tenant_id, Terms(tiers=(Tier(Money.parse("1"), 50),)), 0)
        made = close(connection, raw_redis, acme, "2025-11", issuer="us", key=KEY, now_ms=ms("2026-01-01"))
        credit_notes.issue(
            connection, made.number, Money.parse("10"), "an outage", issuer="us", key=KEY,
            now_ms=ms("2025-11-30"),
        )  # fmt: skip
    assert json.loads(made.document)["net"] == "1922.26"
    total = ask(admin)["total"]
    assert (total["revenue"], total["revenue_terms"]) == ("1913.70", "-11.30")
    by_pool = {line["pool"]: line["revenue"] for line in ask(admin, by="pool")["lines"]}
    assert by_pool == {POOL: "1925.00", None: "-11.30"}


def test_the_machines_of_a_pool_have_versions_that_stay(
    admin: TestClient, november: str, database: Engine
) -> None:
    newest = admin.post("/admin/v1/machines", json={"pool": POOL, "use": "internal"}).json()
    assert (newest["usd_per_hour"], newest["kw"], newest["overhead"]) == ("5.00", "8", "1.25")
    versions = admin.get("/admin/v1/machines", params={"pool": POOL}).json()["data"]
    assert [each["use"] for each in versions] == [None, None, "internal"]
    mended = {"pool": POOL, "from": "2025-11-16", "usd_per_hour": "0"}
    assert admin.post("/admin/v1/machines", json=mended).status_code == 201
    assert ask(admin)["total"]["cost_machines"] == "2880.00"
    for change in ("delete from machine_terms", "update machine_terms set gpus = 1"):
        with pytest.raises(DBAPIError, match="append-only"), database.begin() as connection:
            connection.execute(text(change))


def test_what_is_expected_is_what_was_used_and_earned_of_late(admin: TestClient, database: Engine) -> None:
    """Of a day: 3.60 USD under a contract, whose capacity costs 5 an hour, and 1.44 beside it, and the maker
    gets a quarter of all; so 5.04 USD for each such day of the quarter, and a tenth less at lower prices.
    """
    with database.begin() as connection:
        shop = furnish(connection)
        at_ms = store.now_ms(connection)
        set_price(connection, POOL, input="2", cached_input="1", output="8", valid_from_ms=0)
        makers.set_terms(connection, MakerTerms(model=POOL, maker="lab", from_ms=0, share_basis_points=2500))
        acme, bolt = shop.tenants["acme"], shop.tenants["bolt"]
        since_ms = at_ms - 2 * DAY
        draft = lifecycle.draft(connection, terms(acme, 500, since_ms, at_ms + 400 * DAY), now_ms=since_ms)
        contract = lifecycle.sign(connection, draft.contract_id, now_ms=since_ms).contract_id
        priced = store.find(connection, contract)
        set_capacity_price(connection, priced, "0.01", 100, since_ms, since_ms)
        shared = {"model": POOL, "pool": POOL, "started_ms": at_ms - 3 * HOUR}
        asked = [
            # One at each end of the day: if a month ends within it, the model is used in both months, and so
            # the capacity of both is the model's.
            *(event(f"req_{moment_ms}", (1, 0, 0), tenant=acme, contract=contract,
                    class_=CapacityClass.RESERVED,
                    **shared | {"started_ms": moment_ms - 5, "ended_ms": moment_ms})
              for moment_ms in (at_ms - DAY + 60_000, at_ms - 5)),
            event("req_a", (1_000_000, 0, 200_000), tenant=acme, contract=contract,
                  class_=CapacityClass.RESERVED, **shared),
            event("req_b", (640_000, 0, 20_000), tenant=bolt, **shared),
        ]  # fmt: skip
        record_events(connection, [ReceivedEvent.read(each.to_json()) for each in asked])
    body = {"basis_days": 1, "quarters": 2, "price_change": "-0.1"}
    found = admin.post(f"{PATH}/what-if", json=body).json()
    from_ms, until_ms = (
        int(datetime.fromisoformat(found[word]).timestamp() * 1000) for word in ("from", "until")
    )
    # The day begins with its first hour.
    basis_ms = from_ms - (from_ms - DAY) // HOUR * HOUR
    before, after = found["total"]["before"], found["total"]["after"]
    assert float(before["revenue"]) == pytest.approx(
        5.040004 * (until_ms - from_ms) / basis_ms + 5 * (until_ms - from_ms) / HOUR, rel=1e-6
    )
    assert float(before["cost_makers"]) == pytest.approx(float(before["revenue"]) / 4, rel=1e-6)
    assert float(after["revenue"]) == pytest.approx(float(before["revenue"]) * 0.9, rel=1e-6)
    assert before["unit_hours"]["used"] == after["unit_hours"]["used"]
    assert float(after["economic_utilization_percentage"]) < float(before["economic_utilization_percentage"])


NO_REPORTS: tuple[tuple[dict[str, str], str], ...] = (
    ({"by": "tenant"}, "by"), ({"by": "use,use"}, "by"), ({"pool": "nothing"}, "pool"),
    ({"from": "2027-01-01", "until": "2026-01-01"}, "from"), ({"from": "1970-01-01"}, "from"),
    ({"quarter": "1"}, "quarter"),
)  # fmt: skip
NO_MACHINES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"usd_per_hour": "-1"}, "usd_per_hour"), ({"usd_per_hour": 1.5}, "usd_per_hour"), ({}, "usd_per_hour"),
    ({"kw": "-1"}, "kw"), ({"kw": "0.0001"}, "kw"), ({"overhead": "0.9"}, "overhead"),
    ({"gpus": -1}, "gpus"), ({"use": "sold"}, "use"), ({"gpus": 1, "pool": "nothing"}, "pool"),
)  # fmt: skip
NO_CHANGES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"price_change": "-1.1"}, "price_change"), ({"utilization": 2}, "utilization"),
    ({"utilization": "0.5", "work_change": "0.1"}, "utilization"), ({"quarters": 0}, "quarters"),
    ({"moves": [{"pool": POOL, "instances": 1}]}, "moves"),
    ({"moves": [{"pool": POOL, "instances": 3, "to_use": "recsys"}]}, "moves"),
    ({"moves": [{"pool": POOL, "instances": 1, "from_use": "recsys"}]}, "moves"),
    ({"moves": [{"pool": "none", "instances": 1, "to_use": "recsys"}]}, "pool"),
    ({"moves": [{"pool": POOL, "instances": 1, "to_use": "idle", "until": "2020-01-01"}]}, "moves"),
    ({"notices": [{"contract": "con_none", "by": "tenant"}]}, "contract"), ({"pool": "none"}, "pool"),
)  # fmt: skip


def test_what_makes_no_sense_is_refused_and_names_the_field(admin: TestClient, database: Engine) -> None:
    with database.begin() as connection:
        furnish(connection)
    answers = [
        *((admin.get(PATH, params=query), param) for query, param in NO_REPORTS),
        *(
            (admin.post("/admin/v1/machines", json={"pool": POOL} | body), param)
            for body, param in NO_MACHINES
        ),
        *((admin.post(f"{PATH}/what-if", json=body), param) for body, param in NO_CHANGES),
    ]
    for answer, param in answers:
        assert answer.status_code in {400, 404, 409}, answer.request.url
        assert answer.json()["error"]["param"] == param, answer.text
    assert admin.get("/admin/v1/machines").json()["data"] == []
