"""Routes of contracts and of what pools may sell: what is asked for in bad terms is refused by name and
changes nothing.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import Engine, func, insert, select, text

from billing.schema.capacity import calibration, contract, contract_history, contract_step, pool
from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry, InstanceStatus

Make = Callable[..., dict[str, Any]]
POOL = "org/llama"
START = datetime(2200, 1, 1, tzinfo=UTC)


def day(count: int) -> str:
    return (START + timedelta(days=count)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(autouse=True)
def pool_to_sell(made: Make, admin: TestClient, database: Engine) -> None:
    """Two instances of 1,000 units per second each, without headroom, and the tenant acme."""
    made("tenants", name="acme")
    made("tenants", name="bolt")
    made("models", name=POOL, context_tokens=100)
    made("prices", model=POOL, free=True)
    with database.begin() as connection:
        connection.execute(
            insert(calibration).values(
                calibration_id="cal_1", pool=POOL, model=POOL, weights_version=1, capacity_mu_s=1_000_000,
                sequences=16, tpot_target_ms=50, ttft_target_ms=1000, hardware="cpu", engine_version="0.32",
                error_permille=30, report={},
            )
        )  # fmt: skip
    answer = admin.patch(f"/admin/v1/pools/{POOL}", json={"instances": 2, "headroom": "0"})
    assert answer.status_code == 200, answer.text


def asked(**fields: Any) -> dict[str, Any]:
    """A body that is right, but for what is given; None leaves a field out."""
    base = {
        "tenant": "acme",
        "pool": POOL,
        "units": "500",
        "from": day(0),
        "until": day(300),
        "notice_days": 90,
    }
    return {name: value for name, value in {**base, **fields}.items() if value is not None}


def counts(database: Engine) -> list[int]:
    with database.connect() as connection:
        return [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (contract, contract_step, contract_history)
        ]


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_contract_is_signed_shown_amended_noticed_and_remembered(made: Make, admin: TestClient):
    signed = made("contracts", **asked(
        ramp=[{"from": day(100), "units": 750.5}], overflow="spill", spill_units="20", headroom="0.1",
        price_reference="PO 7", minimum_until=day(50), tenant_notice_days=30,
    ))  # fmt: skip
    assert signed.pop("warnings") == []
    assert signed["state"] == "signed"
    assert signed["steps"] == [{"from": day(0), "units": "500"}, {"from": day(100), "units": "750.5"}]
    assert (signed["from"], signed["until"], signed["ends"], signed["units"]) == (
        day(0),
        day(300),
        day(300),
        "0",
    )
    assert (signed["tenant_notice_days"], signed["operator_notice_days"]) == (30, 90)
    assert (signed["overflow"], signed["spill_units"], signed["headroom"]) == ("spill", "20", "0.1")
    path = f"/admin/v1/contracts/{signed['contract']}"
    assert admin.get(path).json() == signed
    changed = admin.post(f"{path}/amend", json={"units": 600, "from": day(10), "until": day(400)}).json()
    assert changed["steps"] == [{"from": day(0), "units": "500"}, {"from": day(10), "units": "600"}]
    assert changed["until"] == day(400)
    ended = admin.post(f"{path}/notice", json={"by": "tenant"}).json()
    assert (ended["state"], ended["notice_by"], ended["ends"]) == ("notice_given", "tenant", day(50))
    history = admin.get(f"{path}/history").json()["data"]
    assert [(each["change"], each["by"]) for each in history] == [
        ("draft", "operator"), ("signed", "operator"), ("amended", "operator"), ("notice_given", "tenant"),
    ]  # fmt: skip
    assert history[-1]["after"] == ended
    for query, found in (
        ("", 1),
        ("?tenant=acme", 1),
        ("?tenant=bolt", 0),
        (f"?pool={POOL}&state=notice_given", 1),
        ("?state=ended", 0),
    ):
        assert len(admin.get(f"/admin/v1/contracts{query}").json()["data"]) == found, query


def test_a_draft_is_signed_later(made: Make, admin: TestClient):
    drafted = made("contracts", **asked(draft=True, units=5000))
    assert drafted["state"] == "draft"
    error = error_of(admin.post(f"/admin/v1/contracts/{drafted['contract']}/sign"), 409)
    assert (error["code"], error["param"]) == ("capacity_short", "units")
    assert f"from {day(0)} until {day(300)} by 3000 units per second" in error["message"]
    small = made("contracts", **asked(draft=True))
    assert admin.post(f"/admin/v1/contracts/{small['contract']}/sign").json()["state"] == "signed"


def test_overflow_cap_and_notice_are_amended_from_a_moment_on(made: Make, admin: TestClient):
    signed = made("contracts", **asked(overflow="spill", spill_units=20))
    assert signed.pop("warnings") == []
    path = f"/admin/v1/contracts/{signed['contract']}"
    changed = admin.post(
        f"{path}/amend", json={"spill_units": None, "tenant_notice_days": 30, "from": day(1)}
    ).json()
    assert changed["planned"] == [{
        "from": day(1), "overflow": "spill", "spill_units": None, "tenant_notice_days": 30,
        "operator_notice_days": 90,
    }]  # fmt: skip
    assert changed.pop("warnings") == []
    assert {**changed, "planned": []} == signed
    now = admin.post(f"{path}/amend", json={"overflow": "queue", "notice_days": 7}).json()
    assert now.pop("warnings") == []
    assert (now["overflow"], now["spill_units"], now["planned"]) == ("queue", None, [])
    assert (now["tenant_notice_days"], now["operator_notice_days"]) == (7, 7)
    assert admin.get(path).json() == now
    history = admin.get(f"{path}/history").json()["data"]
    assert [each["change"] for each in history] == ["draft", "signed", "amended", "amended"]
    assert (history[1]["after"], history[2]["after"], history[3]["after"]) == (signed, changed, now)
    assert admin.post(f"{path}/notice", json={"by": "operator"}).status_code == 200
    error = error_of(admin.post(f"{path}/amend", json={"notice_days": 8}), 409)
    assert (error["code"], error["param"]) == ("notice_given", "tenant_notice_days")


def test_a_draft_is_withdrawn(made: Make, admin: TestClient):
    drafted = made("contracts", **asked(draft=True))
    path = f"/admin/v1/contracts/{drafted['contract']}"
    ended = admin.post(f"{path}/withdraw").json()
    assert (ended["state"], ended["units"]) == ("ended", "0")
    assert error_of(admin.post(f"{path}/sign"), 409)["code"] == "not_a_draft"
    assert [each["change"] for each in admin.get(f"{path}/history").json()["data"]] == ["draft", "withdrawn"]


BAD = {
    "negative units": ({"units": -1}, 400, "units"),
    "zero units": ({"units": "0"}, 400, "units"),
    "no units": ({"units": None}, 400, "units"),
    "units that are a truth": ({"units": True}, 400, "units"),
    "units that are no number": ({"units": "many"}, 400, "units"),
    "units without end": ({"units": "Infinity"}, 400, "units"),
    "units with four decimals": ({"units": "1.0005"}, 400, "units"),
    "more units than any pool does": ({"units": "1000000000001"}, 400, "units"),
    "units beyond reason": ({"units": "1e999999999"}, 400, "units"),
    "digits beyond reason": ({"units": "9" * 200}, 400, "units"),
    "it ends before it starts": ({"until": day(-1)}, 400, "until"),
    "it ends after centuries": ({"until": "2900-01-01"}, 400, "until"),
    "it has no end": ({"until": None}, 400, "until"),
    "the end is no moment": ({"until": "soon"}, 400, "until"),
    "it starts in the past": ({"from": "2001-01-01", "until": "2002-01-01"}, 400, "from"),
    "it starts beyond the calendar": ({"from": 10**17}, 400, "from"),
    "unknown pool": ({"pool": "nothing"}, 404, "pool"),
    "unknown tenant": ({"tenant": "nobody"}, 404, "tenant"),
    "a gap in the ramp": ({"units": None, "ramp": [{"from": day(1), "units": 1}]}, 400, "ramp"),
    "a ramp out of order": ({"ramp": [{"from": day(9), "units": 1}, {"from": day(8), "units": 1}]}, 400,
    "ramp"),
    "two steps at once": ({"ramp": [{"from": day(9), "units": 1}, {"from": day(9), "units": 2}]}, 400,
    "ramp"),
    "a step beyond the end": ({"ramp": [{"from": day(300), "units": 1}]}, 400, "ramp"),
    "a negative step": ({"ramp": [{"from": day(9), "units": -5}]}, 400, "ramp"),
    "a step without units": ({"ramp": [{"from": day(9)}]}, 400, "ramp.0.units"),
    "a ramp that is none": ({"ramp": "steep"}, 400, "ramp"),
    "an end after every calendar": ({"until": "+9000y"}, 400, "until"),
    "an end that is nearly a span": ({"until": "+1 y"}, 400, "until"),
    "a span without its sign": ({"until": "1y"}, 400, "until"),
    "a minimum term beyond the end": ({"minimum_until": day(301)}, 400, "minimum_until"),
    "no notice": ({"notice_days": None}, 400, "notice_days"),
    "a negative notice": ({"notice_days": -1}, 400, "tenant_notice_days"),
    "a notice of ages": ({"operator_notice_days": 10**9}, 400, "operator_notice_days"),
    "an unknown overflow": ({"overflow": "explode"}, 400, "overflow"),
    "a cap without spill": ({"spill_units": 5}, 400, "spill_units"),
    "headroom of everything": ({"headroom": 1}, 400, "headroom"),
    "negative headroom": ({"headroom": "-0.1"}, 400, "headroom"),
    "a field of another noun": ({"spend": 1}, 400, "spend"),
    "too much": ({"units": 2000.001}, 409, "units"),
}  # fmt: skip


def test_bad_input_names_the_field_and_changes_nothing(admin: TestClient, database: Engine):
    for draft in (False, True):
        for name, (fields, status, param) in BAD.items():
            if draft and name == "too much":
                continue
            before = counts(database)
            error = error_of(admin.post("/admin/v1/contracts", json=asked(draft=draft, **fields)), status)
            assert error["param"] == param, (name, error)
            assert counts(database) == before == [0, 0, 0], name


def test_a_refused_change_of_a_contract_changes_nothing(made: Make, admin: TestClient, database: Engine):
    signed = made("contracts", **asked())
    assert signed.pop("warnings") == []
    path = f"/admin/v1/contracts/{signed['contract']}"
    before = counts(database)
    for route, body, status, param in (
        ("amend", {}, 400, "units"), ("amend", {"units": -1, "from": day(1)}, 400, "units"),
        ("amend", {"units": 5, "from": "2001-01-01"}, 400, "from"), ("amend", {"from": day(1)}, 400, "units"),
        ("amend", {"units": 5, "from": day(300)}, 400, "ramp"), ("amend", {"until": day(299)}, 400, "until"),
        ("amend", {"units": 2001, "from": day(1)}, 409, "units"), ("notice", {}, 400, "by"), ("notice",
        {"by": "nobody"}, 400, "by"),
        ("amend", {"overflow": "explode"}, 400, "overflow"), ("amend", {"overflow": "queue",
        "from": "2001-01-01"}, 400, "from"),
        ("amend", {"overflow": "queue", "from": day(300)}, 400, "from"), ("amend", {"spill_units": 5}, 400,
        "spill_units"),
        ("amend", {"spill_units": None}, 400, "spill_units"), ("amend", {"notice_days": -1}, 400,
        "tenant_notice_days"),
        ("amend", {"operator_notice_days": True}, 400, "operator_notice_days"), ("amend", {"headroom": "0.1"},
        400, "headroom"),
        ("amend", {"units": 5, "from": day(1), "overflow": "spill", "spill_units": 0}, 400, "spill_units"),
        ("sign", None, 409, "contract"), ("withdraw", None, 409, "contract"),
    ):  # fmt: skip
        assert error_of(admin.post(f"{path}/{route}", json=body), status)["param"] == param, (route, body)
    assert admin.get(path).json() == signed
    assert counts(database) == before
    for route in ("sign", "withdraw", "amend", "notice"):
        body = {"amend": {"units": 1}, "notice": {"by": "tenant"}}.get(route)
        assert (
            error_of(admin.post(f"/admin/v1/contracts/con_0/{route}", json=body), 404)["param"] == "contract"
        )
    error_of(admin.get("/admin/v1/contracts/con_0"), 404)
    error_of(admin.get("/admin/v1/contracts/con_0/history"), 404)


def test_a_quote_says_how_much_from_when_and_until_when(made: Make, admin: TestClient):
    made("contracts", **asked(units=1500, until=day(100)))
    made("contracts", **asked(units=1000, tenant="bolt", **{"from": day(200)}))

    def quote(**fields: Any) -> dict[str, Any]:
        body = {"pool": POOL, "from": day(0), "until": day(300), **fields}
        answer = admin.post(
            "/admin/v1/contracts/quote", json={k: v for k, v in body.items() if v is not None}
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    whole = quote()
    assert whole["at_most"] == "500"
    assert whole["free"] == [
        {"from": day(0), "until": day(100), "units": "500"}, {"from": day(100), "until": day(200),
        "units": "2000"},
        {"from": day(200), "until": day(300), "units": "1000"},
    ]  # fmt: skip
    more = quote(units="1000", until=day(50))
    assert (more["fits"], more["fits_from"], more["fits_until"]) == (False, day(100), day(0))
    long = quote(units=1500, **{"from": day(150)}, until=day(350))
    assert (long["fits"], long["fits_from"], long["fits_until"]) == (False, day(300), day(200))
    assert quote(units=5000)["fits_from"] is None
    for_good = quote(units=500, until=None)
    assert (for_good["fits"], for_good["until"], for_good["fits_until"]) == (True, None, None)
    assert quote(headroom="0.2", until=day(100))["at_most"] == "100"
    for fields, status, param in (
        ({"units": 0}, 400, "units"), ({"until": day(-1)}, 400, "until"), ({"from": "2001-01-01"}, 400,
        "from"),
        ({"pool": "nothing"}, 404, "pool"), ({"headroom": 1}, 400, "headroom"),
    ):  # fmt: skip
        body = {"pool": POOL, "from": day(0), "until": day(300), **fields}
        assert error_of(admin.post("/admin/v1/contracts/quote", json=body), status)["param"] == param


def test_a_pool_shows_what_it_has_and_is_not_changed_below_what_is_signed(made: Make, admin: TestClient):
    path = f"/admin/v1/pools/{POOL}"
    made("contracts", **asked(units=1500, until=day(100)))
    shown = admin.get(path).json()
    assert shown["instances"] == 2
    assert (shown["capacity"], shown["reserved"], shown["free"], shown["contracts"]) == (
        "2000",
        "0",
        "2000",
        1,
    )
    for body in ({"instances": 1}, {"headroom": "0.3"}, {"set_aside": 501}):
        error = error_of(admin.patch(path, json=body), 409)
        assert error["code"] == "capacity_short"
        assert f"from {day(0)} until {day(100)}" in error["message"]
    assert admin.get(path).json() == shown
    changed = admin.patch(path, json={"set_aside": "499.5", "instances": 3, "headroom": 0.1}).json()
    assert (changed["set_aside"], changed["headroom"], changed["capacity"]) == ("499.5", "0.1", "2200.5")
    for body in (
        {"instances": -1},
        {"instances": 10**9},
        {"instances": "2"},
        {"headroom": 1},
        {"set_aside": -1},
        {"name": "x"},
    ):
        error_of(admin.patch(path, json=body), 400)
    error_of(admin.get("/admin/v1/pools/nothing"), 404)
    error_of(admin.patch("/admin/v1/pools/nothing", json={"instances": 1}), 404)


def test_a_pool_that_nobody_set_or_measured_has_the_defaults_and_sells_nothing(
    made: Make, admin: TestClient, database: Engine
):
    made("models", name="new", context_tokens=100)
    shown = admin.get("/admin/v1/pools/new").json()
    assert (shown["instances"], shown["headroom"], shown["units_per_instance"], shown["free"]) == (
        0,
        "0.1",
        None,
        "0",
    )
    error = error_of(admin.post("/admin/v1/contracts", json=asked(pool="new")), 409)
    assert (error["code"], error["param"]) == ("not_calibrated", "pool")
    error_of(admin.post("/admin/v1/contracts/quote", json={"pool": "new"}), 409)
    with database.connect() as connection:
        assert "new" not in connection.execute(select(pool.c.pool)).scalars().all()


def test_the_plan_has_the_machines_that_the_pool_shows(made: Make, admin: TestClient, raw_redis: redis.Redis):
    made("models", name="new", context_tokens=100)
    entry = InstanceEntry(
        instance="i1", model="new", pool="new", cell="new", url="http://127.0.0.1:1", key=None, epoch="e1",
        status=InstanceStatus.READY,
    )  # fmt: skip
    raw_redis.hset(redis_keys.INSTANCES, "i1", entry.to_json())

    def machines() -> tuple[int, int, dict[str, int]]:
        (planned,) = admin.get("/admin/v1/plan", params={"pool": "new"}).json()["data"]
        shown = admin.get("/admin/v1/pools/new").json()["instances"]
        return shown, planned["instances"], planned["periods"][0]["machines"]

    assert machines() == (1, 1, {"external": 1})
    admin.patch("/admin/v1/pools/new", json={"instances": 3})
    assert machines() == (3, 3, {"external": 3})


@pytest.mark.parametrize("minimum", ["+0d", day(0), day(-10), "2001-01-01T00:00:00Z"])
def test_a_minimum_term_that_is_over_at_the_start_is_none(made: Make, minimum: str):
    signed = made("contracts", **asked(minimum_until=minimum))
    assert signed["minimum_until"] == signed["from"] == day(0)


def test_spans_count_from_the_start_by_the_calendar(made: Make, admin: TestClient):
    ramp = [{"from": "+1mo", "units": 7}, {"from": day(40), "units": 8}]
    signed = made("contracts", **asked(until="+1y", minimum_until="+6mo", ramp=ramp))
    assert (signed["until"], signed["minimum_until"]) == ("2201-01-01T00:00:00Z", "2200-07-01T00:00:00Z")
    assert [step["from"] for step in signed["steps"]] == [day(0), "2200-02-01T00:00:00Z", day(40)]
    longer = admin.post(
        f"/admin/v1/contracts/{signed['contract']}/amend",
        json={"until": "+3y", "from": day(10), "overflow": "queue"},
    )
    assert longer.json()["until"] == "2203-01-11T00:00:00Z"
    quote = admin.post("/admin/v1/contracts/quote", json={"pool": POOL, "from": day(0), "until": "+2w"})
    assert quote.json()["until"] == day(14)


def test_what_is_not_as_a_plan_has_shown_it_is_a_conflict(admin: TestClient):
    asked_for = {"pool": POOL, "instances": 2, "use": "research", "chosen": ["i1", "i2"]}
    error = error_of(admin.post("/admin/v1/reclaims", json=asked_for), 409)
    assert (error["code"], error["type"]) == ("plan_changed", "conflict_error")
    assert admin.get("/admin/v1/reclaims").json()["data"] == []


@pytest.mark.parametrize("when", ["1y", "+1x", "soon", "+1.5y", True, None])
def test_what_is_neither_moment_nor_span_is_told_what_both_are(admin: TestClient, when: Any):
    body = {**asked(), "until": when}
    error = error_of(admin.post("/admin/v1/contracts", json=body), 400)
    assert error["param"] == "until"
    assert "2026-01-31T12:00:00Z" in error["message"]
    assert "+90d" in error["message"]


def test_from_when_on_alone_is_asked_what_is_to_hold_then(made: Make, admin: TestClient):
    path = f"/admin/v1/contracts/{made('contracts', **asked())['contract']}/amend"
    for body in ({"from": day(1)}, {"from": day(1), "until": day(400)}):
        error = error_of(admin.post(path, json=body), 400)
        assert "overflow or notice; a later end alone takes no `from`" in error["message"]


@pytest.mark.parametrize("noun", ["contracts", "reclaims", "calibrations"])
def test_what_a_pool_has_is_not_asked_of_none(admin: TestClient, noun: str):
    error = error_of(admin.get(f"/admin/v1/{noun}", params={"pool": "org/lama"}), 404)
    assert (error["param"], "taas pool list" in error["message"]) == ("pool", True)
    assert admin.get(f"/admin/v1/{noun}", params={"pool": POOL}).status_code == 200


def test_what_has_no_price_is_sold_to_nobody_outside(made: Make, admin: TestClient, database: Engine):
    """And a contract of before goes on."""
    before = made("contracts", **asked())["contract"]
    with database.begin() as connection:
        connection.execute(text("alter table price disable trigger user"))
        connection.execute(text("delete from price"))
    error = error_of(admin.post("/admin/v1/contracts", json=asked(tenant="bolt")), 409)
    assert (error["code"], error["param"]) == ("not_for_sale", "pool")
    assert "taas price set" in error["message"]
    draft = made("contracts", **asked(tenant="bolt", draft=True))["contract"]
    error_of(admin.post(f"/admin/v1/contracts/{draft}/sign"), 409)
    assert [each["contract"] for each in admin.get("/admin/v1/contracts?state=signed").json()["data"]] == [
        before
    ]
    assert admin.post(f"/admin/v1/contracts/{before}/amend", json={"units": 20}).status_code == 200
    made("tenants", name="team", kind="internal")
    assert made("contracts", **asked(tenant="team"))["state"] == "signed"
    made("prices", model=POOL, input="1", output="2", **{"from": "2999-01-01"})
    assert admin.post(f"/admin/v1/contracts/{draft}/sign").status_code == 200
