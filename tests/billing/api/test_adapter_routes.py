"""What an operator can do to adapters over the admin API, and what workers and gateways see of it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry, InstanceStatus

Make = Callable[..., dict[str, Any]]
PATH = "/srv/adapters/a"


@pytest.fixture
def base(made: Make) -> dict[str, Any]:
    made("tenants", name="acme")
    made("tenants", name="other")
    return made(
        "models",
        name="m",
        context_tokens=4096,
        vocabulary_tokens=49152,
        weights={"w_in_mu": 7, "w_cached_mu": 3, "w_out_mu": 9},
        routes=["chat", "completions", "embeddings", "tokenize"],
    )


def wanted_of(client: redis.Redis, model: str = "m") -> Any:
    raw = client.hget(redis_keys.MODELS, model)
    assert raw is not None
    return json.loads(raw)["adapters"]


def test_an_adapter_is_a_model_of_its_owner_beside_its_base(
    admin: TestClient, made: Make, base: dict[str, Any], raw_redis: redis.Redis
) -> None:
    adapter = made("adapters", model="m", name="support", path=PATH, owner="acme")
    assert (adapter["model"], adapter["base"], adapter["path"]) == ("m:support", "m", PATH)
    assert (adapter["owner_name"], adapter["loaded"], adapter["refused"]) == ("acme", {}, {})
    model = admin.get("/admin/v1/models/m:support").json()
    assert (model["owner"], model["visible"]) == (adapter["owner"], [adapter["owner"]])
    assert (model["pool"], model["cell"]) == ("m", "m")
    assert model["routes"] == ["chat", "completions", "tokenize"]
    assert model["weights"] == {"version": 1, "w_in_mu": 7, "w_cached_mu": 3, "w_out_mu": 9}
    assert model["for_sale_from_ms"] is None
    assert wanted_of(raw_redis) == {"m:support": PATH}
    assert admin.get("/admin/v1/adapters", params={"model": "m"}).json()["data"] == [adapter]


def test_it_has_prices_limits_and_keys_of_its_own(
    admin: TestClient, made: Make, base: dict[str, Any]
) -> None:
    made("adapters", model="m", name="support", path=PATH, owner="acme")
    made("prices", model="m:support", input="1", cached_input="0.5", output="2")
    limit = {"tenant": "acme", "model": "m:support", "requests_per_minute": 5}
    assert admin.put("/admin/v1/limits", json=limit).status_code == 200
    assert made("keys", tenant="acme", models=["m:support"])["models"] == ["m:support"]
    assert admin.get("/admin/v1/models/m:support").json()["for_sale_from_ms"] is not None


def test_a_retired_adapter_is_dropped_and_can_come_back(
    admin: TestClient, made: Make, base: dict[str, Any], raw_redis: redis.Redis
) -> None:
    made("adapters", model="m", name="support", path=PATH, owner="acme")
    for status, wanted in (("retired", {}), ("active", {"m:support": PATH})):
        assert admin.patch("/admin/v1/models/m:support", json={"status": status}).status_code == 200
        assert wanted_of(raw_redis) == wanted


def test_new_files_come_under_the_same_name(
    admin: TestClient, made: Make, base: dict[str, Any], raw_redis: redis.Redis
) -> None:
    made("adapters", model="m", name="support", path=PATH, owner="acme")
    changed = admin.patch("/admin/v1/adapters/m:support", json={"path": "/srv/b"})
    assert (changed.status_code, changed.json()["path"]) == (200, "/srv/b")
    assert wanted_of(raw_redis) == {"m:support": "/srv/b"}
    assert admin.patch("/admin/v1/adapters/m:none", json={"path": "/srv/b"}).status_code == 404
    assert admin.patch("/admin/v1/adapters/m", json={"path": "/srv/b"}).status_code == 404


def test_a_base_with_active_adapters_stays(admin: TestClient, made: Make, base: dict[str, Any]) -> None:
    made("adapters", model="m", name="support", path=PATH, owner="acme")
    refused = admin.patch("/admin/v1/models/m", json={"status": "retired"})
    assert refused.status_code == 409
    assert "retire them first" in refused.json()["error"]["message"]
    assert admin.get("/admin/v1/models/m").json()["status"] == "active"
    for name in ("m:support", "m"):
        assert admin.patch(f"/admin/v1/models/{name}", json={"status": "retired"}).status_code == 200
    orphan = admin.patch("/admin/v1/models/m:support", json={"status": "active"})
    assert (orphan.status_code, orphan.json()["error"]["message"]) == (409, "Its base m is retired.")


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"model": "none"}, 404, "no model 'none'"),
        ({"owner": "nobody"}, 404, "nobody"),
        ({"model": "embeds"}, 400, "generates no text"),
        ({"model": "private"}, 400, "only its owner can own"),
        ({"name": "there"}, 409, "already"),
        ({"name": "a:b"}, 400, "name"),
        ({"model": "m:there"}, 400, "model"),
        ({"name": "x" * 128}, 400, "name"),
        ({"path": ""}, 400, "path"),
        ({"rank": 8}, 400, "rank"),
    ],
)
def test_what_cannot_be_one_is_refused_by_name_and_leaves_nothing(
    admin: TestClient, made: Make, base: dict[str, Any], changes: dict[str, Any], status: int, says: str
) -> None:
    made("models", name="embeds", context_tokens=100, routes=["embeddings"])
    made("models", name="private", context_tokens=100, owner="other")
    made("adapters", model="m", name="there", path=PATH, owner="acme")
    body = {"model": "m", "name": "a", "path": PATH, "owner": "acme"} | changes
    refused = admin.post("/admin/v1/adapters", json=body)
    assert refused.status_code == status, refused.text
    assert says in refused.text
    assert len(admin.get("/admin/v1/adapters").json()["data"]) == 1
    assert len(admin.get("/admin/v1/models").json()["data"]) == 4


def test_only_adapters_have_such_a_name(admin: TestClient, base: dict[str, Any]) -> None:
    refused = admin.post("/admin/v1/models", json={"name": "m:a", "context_tokens": 100})
    assert refused.status_code == 400


def test_it_says_which_instances_have_it_and_why_others_do_not(
    admin: TestClient, made: Make, base: dict[str, Any], raw_redis: redis.Redis
) -> None:
    made("adapters", model="m", name="support", path=PATH, owner="acme")
    for name, adapters, refused in (
        ("one", {"m:support": "m:support@1f"}, {}),
        ("two", {}, {"m:support": "its rank is 64"}),
        ("three", {}, {}),
    ):
        entry = InstanceEntry(
            instance=name, model="m", pool="m", cell="m", url="http://10.0.0.1:1", key="k", epoch="e",
            status=InstanceStatus.READY, adapters=adapters, refused_adapters=refused,
        )  # fmt: skip
        raw_redis.hset(redis_keys.INSTANCES, name, entry.to_json())
    (shown,) = admin.get("/admin/v1/adapters").json()["data"]
    assert (shown["loaded"], shown["refused"]) == ({"one": "1f"}, {"two": "its rank is 64"})
