"""What the admin API refuses, so that a private model's engines serve its owner alone and its owner's
requests go nowhere else.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry, InstanceStatus

Make = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def models(made: Make) -> None:
    """acme's private model, one of everybody, and another tenant."""
    for name in ("acme", "bolt"):
        made("tenants", name=name)
    made("models", name="open", context_tokens=2048)
    made("models", name="fine", context_tokens=2048, owner="acme")


def refused(admin: TestClient, path: str, **body: Any) -> tuple[int, str]:
    answer = admin.post(f"/admin/v1/{path}", json=body)
    return answer.status_code, answer.json()["error"]["param"]


@pytest.mark.parametrize("owner", [None, "bolt"])
@pytest.mark.parametrize("pool", ["fine", "fine/pooling"])
def test_no_other_model_gets_into_the_pool_of_a_private_one(
    admin: TestClient, owner: str | None, pool: str
) -> None:
    assert refused(admin, "models", name="x", context_tokens=9, owner=owner, pool=pool) == (409, "pool")


@pytest.mark.parametrize("pool", ["open", "open/pooling"])
def test_a_private_model_gets_into_the_pool_of_no_other(admin: TestClient, pool: str) -> None:
    assert refused(admin, "models", name="x", context_tokens=9, owner="bolt", pool=pool) == (409, "pool")


def test_a_name_that_is_a_private_models_second_pool_is_no_model_of_others(admin: TestClient) -> None:
    assert refused(admin, "models", name="fine/pooling", context_tokens=9) == (409, "pool")


def test_models_of_one_owner_may_share_a_pool(made: Make) -> None:
    assert made("models", name="finer", context_tokens=2048, owner="acme", pool="fine")["pool"] == "fine"


def test_of_two_that_come_at_once_one_is_refused(admin: TestClient) -> None:
    with ThreadPoolExecutor(8) as threads:
        bodies = [
            {"name": f"m{n}", "context_tokens": 9, "pool": "new", "owner": ("acme", "bolt", None)[n % 3]}
            for n in range(8)
        ]
        answers = [*threads.map(lambda body: admin.post("/admin/v1/models", json=body), bodies)]
    owners = {answer.json()["owner"] for answer in answers if answer.status_code == 201}
    assert len(owners) == 1


def test_a_private_model_is_at_no_other_provider(admin: TestClient) -> None:
    asked = {"model": "fine", "url": "https://127.0.0.1:1", "engine": "openai", "key": "k", "force": True}
    assert refused(admin, "instances", **asked) == (400, "engine")
    assert admin.get("/admin/v1/instances").json()["data"] == []


def test_a_private_models_engine_is_added_to_no_other_model(
    admin: TestClient, raw_redis: redis.Redis
) -> None:
    url = "http://127.0.0.1:8100"
    entry = InstanceEntry(
        instance="theirs", model="fine", pool="fine", cell="fine", url=url, key="k", epoch="e",
        status=InstanceStatus.READY,
    )  # fmt: skip
    raw_redis.hset(redis_keys.INSTANCES, "theirs", entry.to_json())
    assert refused(admin, "instances", model="open", url=f"{url}/v1", force=True) == (409, "url")


def test_only_its_owner_signs_for_its_pool(admin: TestClient) -> None:
    asked = {"pool": "fine", "units": "1", "from": "2200-01-01", "until": "2200-12-01", "notice_days": 1}

    def code(**fields: str) -> str:
        answer = admin.post("/admin/v1/contracts", json={**asked, **fields})
        assert answer.status_code == 409
        return str(answer.json()["error"]["code"])

    assert code(tenant="bolt") == "pool_not_usable"
    assert code(tenant="acme") == code(tenant="bolt", pool="open") == "not_calibrated"
