"""Calibrations over the admin API: what they change, all or nothing, what they are refused for, and that
their tokens are accounted for.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from billing.ledger.check import check_ledger
from billing.wire import redis_keys
from tests.examples import examples

Make = Callable[..., dict[str, Any]]
GOOD: dict[str, Any] = {
    "pool": "m", "model": "m", "weights": {"w_in_mu": 1000, "w_cached_mu": 15, "w_out_mu": 21_500},
    "capacity_units_per_second": "1725.5", "sequences": 16, "tpot_target_ms": 100, "ttft_target_ms": 2000,
    "hardware": "2 × some CPU", "engine_version": "0.32.0", "error": "0.034", "instance": "m-1",
    "steps": [{
        "mix": "reading", "held_back": False, "sequences": 16, "seconds": 3.2, "uncached": 5000, "cached": 0,
        "output": 80, "tpot_ms": None, "ttft_ms": 800.5, "error": -0.01,
    }],
    "remarks": ["The client was busy."],
}  # fmt: skip
SPENT: dict[str, Any] = {
    "run": "0123456789ab", "model": "m", "instance": "m-1", "epoch": "e-1", "prompt": 900, "cached": 400,
    "output": 70, "started_ms": 1_700_000_000_000,
}  # fmt: skip


@pytest.fixture(autouse=True)
def model(made: Make, raw_redis: redis.Redis) -> dict[str, Any]:
    """A model with two instances and one that has ended."""
    for number, status in enumerate(("ready", "draining", "down"), 1):
        entry = {
            "instance": f"m-{number}", "model": "m", "pool": "m", "cell": "m", "url": "http://127.0.0.1:1",
            "key": "sk-engine", "epoch": "e-1", "status": status, "lease_until_ms": 9_000_000_000_000,
        }  # fmt: skip
        raw_redis.hset(redis_keys.INSTANCES, f"m-{number}", json.dumps(entry))
    model = made("models", name="m", context_tokens=2048)
    made("prices", model="m", free=True)
    return model


def stored(database: Engine) -> tuple[int, int, int, int]:
    """Rows of calibrations, versions of weights, what Redis has still to hear, and the pool's instances."""
    with database.connect() as connection:
        counts = [
            connection.execute(text(f"select count(*) from {table}")).scalar_one()  # noqa: S608
            for table in ("calibration", "model_weights", "projection_outbox")
        ]
        instances = connection.execute(text("select coalesce(sum(instances), 0) from pool")).scalar_one()
    return (*counts, instances)


def test_a_calibration_sets_weights_capacity_and_the_pools_machines_at_once(
    admin: TestClient, made: Make, raw_redis: redis.Redis, database: Engine
) -> None:
    answer = admin.post("/admin/v1/calibrations", json=GOOD)
    assert answer.status_code == 201, answer.text
    assert answer.headers["x-taas-effect"] == "now"
    found = answer.json()
    assert found["calibration"].startswith("cal_")
    assert found["weights"] == {"version": 2, **GOOD["weights"]}
    assert (found["capacity_units_per_second"], found["sequences"], found["error"]) == ("1725.5", 16, "0.034")
    assert (found["hardware"], found["engine_version"]) == ("2 × some CPU", "0.32.0")
    assert (found["steps"], found["remarks"], found["instance"]) == (GOOD["steps"], GOOD["remarks"], "m-1")
    told = json.loads(raw_redis.hget(redis_keys.MODELS, "m") or b"")
    assert told["weights"] == {"version": 2, **GOOD["weights"]}
    assert told["capacity_mu_s"] == 1_725_500
    assert stored(database) == (1, 2, 0, 2)
    assert admin.get("/admin/v1/pools/m").json()["units_per_instance"] == "1725.5"


def test_the_newest_is_listed_first_and_holds(admin: TestClient, made: Make) -> None:
    made("models", name="other", context_tokens=100)
    first = made("calibrations", **GOOD)
    other = made("calibrations", **GOOD | {"pool": "other", "model": "other"})
    second = made(
        "calibrations",
        **GOOD | {"capacity_units_per_second": 900, "weights": GOOD["weights"] | {"w_out_mu": 7}},
    )
    assert (first["weights"]["version"], second["weights"]["version"]) == (2, 3)
    assert admin.get("/admin/v1/calibrations").json()["data"] == [second, other, first]
    assert admin.get("/admin/v1/calibrations", params={"pool": "m"}).json()["data"] == [second, first]
    assert admin.get("/admin/v1/pools/m").json()["units_per_instance"] == "900"


def test_the_same_weights_again_are_no_new_version(made: Make, raw_redis: redis.Redis) -> None:
    made("calibrations", **GOOD)
    again = made("calibrations", **GOOD | {"capacity_units_per_second": 2000})
    assert again["weights"]["version"] == 2
    assert json.loads(raw_redis.hget(redis_keys.MODELS, "m") or b"")["capacity_mu_s"] == 2_000_000


def test_machines_that_the_operator_named_stay(admin: TestClient, made: Make) -> None:
    assert admin.patch("/admin/v1/pools/m", json={"instances": 5}).status_code == 200
    made("calibrations", **GOOD)
    assert admin.get("/admin/v1/pools/m").json()["instances"] == 5


BAD = {
    "no weight of input": {"weights": {"w_in_mu": 0, "w_cached_mu": 0, "w_out_mu": 1}},
    "negative weight": {"weights": {"w_in_mu": 1000, "w_cached_mu": -1, "w_out_mu": 1}},
    "no weight of output": {"weights": {"w_in_mu": 1000, "w_cached_mu": 0, "w_out_mu": 0}},
    "cached dearer than computed": {"weights": {"w_in_mu": 1000, "w_cached_mu": 1001, "w_out_mu": 1}},
    "absurd weight": {"weights": {"w_in_mu": 1000, "w_cached_mu": 0, "w_out_mu": 10**30}},
    "weight with a fraction": {"weights": {"w_in_mu": 1000.5, "w_cached_mu": 0, "w_out_mu": 1}},
    "no weights": {"weights": {}},
    "no capacity": {"capacity_units_per_second": 0},
    "negative capacity": {"capacity_units_per_second": "-1"},
    "absurd capacity": {"capacity_units_per_second": 10**12},
    "capacity that is no number": {"capacity_units_per_second": "NaN"},
    "capacity finer than a milliunit": {"capacity_units_per_second": "0.0001"},
    "no sequences": {"sequences": 0},
    "absurd sequences": {"sequences": 10**9},
    "no target": {"tpot_target_ms": 0},
    "negative target": {"ttft_target_ms": -5},
    "negative error": {"error": -0.01},
    "a fit that misses": {"error": "0.501"},
    "no hardware": {"hardware": ""},
    "a control character": {"engine_version": "0.32\u0000"},
    "another pool": {"pool": "x"},
    "an unknown model": {"model": "x"},
    "an unknown field": {"capacity": 1},
    "a step that took no time": {"steps": [GOOD["steps"][0] | {"seconds": 0}]},
    "a word that is none": {"reweigh": "perhaps"},
    "a remark that SQL cannot hold": {"remarks": ["a\u0000b"]},
}


@pytest.mark.parametrize("name", BAD)
def test_figures_that_cannot_be_are_refused_and_change_nothing(
    admin: TestClient, database: Engine, name: str
) -> None:
    before = stored(database)
    answer = admin.post("/admin/v1/calibrations", json=GOOD | BAD[name])
    assert answer.status_code in {400, 404}, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert stored(database) == before


@settings(
    max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(sorted(GOOD)),
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4),
)
def test_no_value_of_any_field_is_an_error_of_the_server(admin: TestClient, field: str, value: Any) -> None:
    body = json.dumps(GOOD | {field: value})
    answer = admin.post("/admin/v1/calibrations", content=body, headers={"content-type": "application/json"})
    assert answer.status_code < 500, (field, value, answer.text)


def test_less_than_is_signed_is_not_recorded(admin: TestClient, made: Make, database: Engine) -> None:
    made("tenants", name="acme")
    made("calibrations", **GOOD)
    terms = {
        "tenant": "acme", "pool": "m", "units": 3000, "from": "2999-01-01T00:00:00Z",
        "until": "2999-06-01T00:00:00Z", "notice_days": 30, "overflow": "reject",
    }  # fmt: skip
    assert made("contracts", **terms)["state"] == "signed"
    before = stored(database)
    answer = admin.post("/admin/v1/calibrations", json=GOOD | {"capacity_units_per_second": 1000})
    assert answer.status_code == 409, answer.text
    assert answer.json()["error"]["code"] == "capacity_short"
    assert "2999-01-01" in answer.json()["error"]["message"]
    assert stored(database) == before


def test_units_that_would_buy_something_else_take_a_word_and_are_remembered(
    admin: TestClient, made: Make, database: Engine
) -> None:
    made("tenants", name="acme")
    made("calibrations", **GOOD)
    signed = made(
        "contracts", tenant="acme", pool="m", units=100, until="2100-06-01T00:00:00Z", notice_days=30
    )
    cheaper = GOOD | {"weights": GOOD["weights"] | {"w_out_mu": 5000}}
    before = stored(database)
    answer = admin.post("/admin/v1/calibrations", json=cheaper)
    assert answer.status_code == 409, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("reweighs", "reweigh")
    assert "output 21.5 → 5" in error["message"]
    assert stored(database) == before
    assert made("calibrations", **cheaper, reweigh=True)["weights"]["version"] == 3
    history = admin.get(f"/admin/v1/contracts/{signed['contract']}/history").json()["data"]
    assert [(entry["change"], entry["detail"]) for entry in history] == [
        ("draft", None), ("signed", None),
        ("reweighed", {"model": "m", "from": {"version": 2, **GOOD["weights"]}, "to": {"version": 3,
        **cheaper["weights"]}}),
    ]  # fmt: skip


def test_weights_set_by_hand_take_the_same_word(admin: TestClient, made: Make, database: Engine) -> None:
    made("tenants", name="acme")
    made("calibrations", **GOOD)
    dearer = {"weights": GOOD["weights"] | {"w_out_mu": 43_000}}
    signed = made(
        "contracts", tenant="acme", pool="m", units=2000, until="2100-06-01T00:00:00Z", notice_days=30
    )
    before = stored(database)
    for body, code in ((dearer, "reweighs"), (dearer | {"reweigh": True}, "capacity_short")):
        answer = admin.patch("/admin/v1/models/m", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, code), answer.text
    assert stored(database) == before
    assert admin.patch("/admin/v1/models/m", json={"context_tokens": 4096}).status_code == 200
    answer = admin.patch(
        "/admin/v1/models/m", json={"weights": GOOD["weights"] | {"w_out_mu": 10_000}, "reweigh": True}
    )
    assert answer.json()["weights"]["version"] == 3
    history = admin.get(f"/admin/v1/contracts/{signed['contract']}/history").json()["data"]
    assert [entry["change"] for entry in history] == ["draft", "signed", "reweighed"]


def test_what_measuring_cost_is_absorbed_once_and_billed_to_nobody(
    admin: TestClient, made: Make, database: Engine
) -> None:
    made("tenants", name="acme")
    assert made("calibrations/absorbed", **SPENT)["recorded"] is True
    assert made("calibrations/absorbed", **SPENT)["recorded"] is False
    with database.connect() as connection:
        row = connection.execute(text("select * from usage_total")).mappings().one()
        assert dict(row) == {
            "instance": "m-1", "epoch": "e-1", "billed_prompt": 0, "billed_output": 0, "absorbed_prompt": 900,
            "absorbed_output": 70,
        }  # fmt: skip
        assert check_ledger(connection) == []
        reasons = connection.execute(text("select absorbed_reasons from usage_event")).scalar_one()
    assert reasons == {"calibration": {"prompt": 900, "output": 70}}
    assert admin.get("/admin/v1/usage", params={"from": 0}).json()["lines"] == []


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"instance": "nobody"}, 404), ({"model": "x"}, 400), ({"prompt": -1}, 400), ({"output": 1.5}, 400),
        ({"cached": 901}, 400), ({"run": "A" * 12}, 400), ({"run": "../x"}, 400), ({"tenant": "acme"}, 400),
        ({"epoch": ""}, 400),
    ],
)  # fmt: skip
def test_tokens_that_cannot_be_are_not_absorbed(
    admin: TestClient, database: Engine, wrong: dict[str, Any], status: int
) -> None:
    answer = admin.post("/admin/v1/calibrations/absorbed", json=SPENT | wrong)
    assert answer.status_code == status, answer.text
    with database.connect() as connection:
        assert connection.execute(text("select count(*) from usage_event")).scalar_one() == 0


def test_measuring_that_cost_nothing_leaves_no_event(made: Make, database: Engine) -> None:
    assert (
        made("calibrations/absorbed", **SPENT | {"prompt": 0, "cached": 0, "output": 0})["recorded"] is False
    )
    with database.connect() as connection:
        assert connection.execute(text("select count(*) from usage_event")).scalar_one() == 0
