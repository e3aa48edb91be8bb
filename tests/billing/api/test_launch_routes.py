"""What launchers are to run: set as a whole, read by the service key, refused where it cannot be."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, insert

from billing.autoscaling import store
from billing.autoscaling.decide import Decision, Why
from billing.schema.capacity import autoscaling
from tests.billing.api.conftest import SERVICE_KEY

SERVICE = {"authorization": f"Bearer {SERVICE_KEY}"}
Make = Callable[..., dict[str, Any]]
WANTED = {
    "model": "m", "instances": 2, "gpus": 4, "nodes": 1, "resources": {"rack-a": 1}, "path": "/models/m",
    "engine_args": ["--tensor-parallel-size", "4"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def some(made: Make) -> None:
    made("models", name="m", context_tokens=100)
    made("models", name="e", context_tokens=100, routes=["embeddings"])


def put(admin: TestClient, pool: str, **changed: Any) -> Any:
    return admin.put(f"/admin/v1/launches/{pool}", json={**WANTED, **changed})


def test_a_launch_is_set_as_a_whole_and_removed(admin: TestClient) -> None:
    assert put(admin, "m").json() == {"pool": "m", **WANTED}
    plain = admin.put("/admin/v1/launches/m", json={"model": "m", "instances": 1}).json()
    assert plain == {"pool": "m", "model": "m", "instances": 1, "gpus": 0, "nodes": 1, "resources": {},
                     "path": None, "engine_args": []}  # fmt: skip
    assert put(admin, "m/pooling").status_code == 200
    assert [each["pool"] for each in admin.get("/admin/v1/launches", headers=SERVICE).json()["data"]] == [
        "m",
        "m/pooling",
    ]
    assert admin.put("/admin/v1/launches/m", json=WANTED, headers=SERVICE).status_code == 403
    assert admin.delete("/admin/v1/launches/m").json() == plain
    assert admin.delete("/admin/v1/launches/m").status_code == 404


def test_of_a_scaled_pool_so_many_are_wanted_as_was_decided(admin: TestClient, database: Engine) -> None:
    put(admin, "m")

    def wanted() -> int:
        (row,) = admin.get("/admin/v1/launches", headers=SERVICE).json()["data"]
        assert row["instances"] == 2
        found: int = row["wanted"]
        return found

    assert wanted() == 2
    with database.begin() as connection:
        connection.execute(insert(autoscaling).values(pool="m", least=0, most=9))
        assert wanted() == 2
    with database.begin() as connection:
        store.decided(connection, "m", Decision(5, Why.LOAD))
    assert wanted() == 5


@pytest.mark.parametrize(
    ("pool", "changed", "status"),
    [
        ("m", {"model": "nobody"}, 404),
        ("other", {}, 409),
        ("e/pooling", {"model": "e"}, 409),  # it only pools, so its pool is `e`
        ("m", {"instances": -1}, 400),
        ("m", {"instances": True}, 400),
        ("m", {"nodes": 0}, 400),
        ("m", {"nodes": 2, "gpus": 0}, 400),
        ("m", {"resources": {"a b": 1}}, 400),
        ("m", {"resources": {"a": 0.5}}, 400),
        ("m", {"engine_args": ["--a\nb"]}, 400),
        ("m", {"count": 3}, 400),
    ],
)
def test_what_cannot_be_is_refused(
    admin: TestClient, pool: str, changed: dict[str, Any], status: int
) -> None:
    assert put(admin, pool, **changed).status_code == status
    assert admin.get("/admin/v1/launches").json()["data"] == []


def test_nothing_is_launched_of_a_retired_model(admin: TestClient) -> None:
    admin.patch("/admin/v1/models/m", json={"status": "retired"})
    assert put(admin, "m").status_code == 409
