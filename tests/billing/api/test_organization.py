"""The typed admin client of OpenAI's SDK: usage, costs, projects, keys, limits and changes of a tenant, and
for the platform those of all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import httpx2
import openai
import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from billing.accounts.roles import Role
from billing.catalogue import tenants
from billing.catalogue.money import Money
from billing.catalogue.price_book import set_price
from billing.contracts import store as contracts
from billing.invoices import credit_notes
from billing.invoices.close import close
from billing.invoices.lines import Terms
from billing.invoices.terms import set_capacity_price, set_terms
from billing.ledger.entries import ReceivedEvent, record_events
from billing.ledger.usage_report import report_usage
from billing.wire.ending import Ending
from billing.wire.routes import POOLING_ROUTES
from billing.wire.usage_event import CapacityClass
from tests.billing.api.conftest import InOneCall, KeyOf
from tests.billing.events import event
from tests.billing.invoices.test_close import SHORT_MINUTE
from tests.billing.ledger.test_price_scopes import OURS, START_MS, sign
from tests.billing.verified import KEY

DAY_S = 86_400
DAY = 1_700_006_400  # 2023-11-15T00:00:00Z
Made = Callable[..., dict[str, Any]]


@contextmanager
def sdk(client: TestClient, key: str) -> Iterator[Any]:
    """The organization of the SDK's admin client with this key."""
    transport = httpx2.Client(transport=InOneCall(client), base_url="http://testserver")
    with openai.OpenAI(
        base_url="http://testserver/v1", admin_api_key=key, max_retries=0, http_client=transport
    ) as made:
        yield made.admin.organization


@pytest.fixture
def shop(admin: TestClient, made: Made, key_of: KeyOf, database: Engine) -> dict[str, str]:
    """acme has two projects with a key each, and another tenant has used something, too."""
    viewer = key_of(Role.VIEWER)
    acme = admin.get("/admin/v1/tenants/acme").json()["tenant"]
    web = made("projects", tenant="acme", name="web")["project"]
    app = made("projects", tenant="acme", name="app")["project"]
    keys = {
        name: made("keys", tenant="acme", project=name, name=f"of {name}")["key_id"]
        for name in ("web", "app")
    }
    other = made("tenants", name="other")["tenant"]
    made("models", name="m1", context_tokens=4096)
    made("models", name="emb", context_tokens=4096, routes=list(POOLING_ROUTES))

    def used(request_id: str, tokens: tuple[int, ...], at_s: int, **more: Any) -> ReceivedEvent:
        of = {"tenant": acme, "project": web, "key_id": keys["web"]} | more
        ending = of.pop("ending", Ending.COMPLETE)
        made_event = event(request_id, tokens, ending, ended_ms=at_s * 1000 + 7, **of)
        return ReceivedEvent.read(made_event.to_json())

    app_key: dict[str, Any] = {"project": app, "key_id": keys["app"]}
    with database.begin() as connection:
        for model in ("m1", "emb"):
            set_price(connection, model, input="1", cached_input="0.5", output="2", valid_from_ms=0)
        record_events(
            connection,
            [
                used("r1", (10, 4, 5), DAY),
                used("r2", (20, 0, 6), DAY + 61, **app_key, class_=CapacityClass.RESERVED),
                used("r3", (30, 0, 7), DAY + 3_600, class_=CapacityClass.FLEX, line="batch_1/0"),
                used("r4", (40, 0, 8), DAY + DAY_S + 5, model="emb", route="embeddings"),
                used("r5", (50, 0, 9), DAY + 2 * DAY_S, class_=CapacityClass.FLEX),
                used("r6", (9, 0, 9), DAY + 3, ending=Ending.ENGINE_DIED),
                used("r7", (99, 0, 99), DAY, tenant=other, project="prj_x", key_id="key_x"),
            ],
        )
    return {"viewer": viewer, "acme": acme, "other": other, "web": web, "app": app, **keys_of(keys)}


def keys_of(keys: dict[str, str]) -> dict[str, str]:
    return {f"key_{name}": key_id for name, key_id in keys.items()}


def test_usage_comes_in_buckets_by_group(nobody: TestClient, shop: dict[str, str]) -> None:
    with sdk(nobody, shop["viewer"]) as organization:
        page = organization.usage.completions(start_time=DAY + 5, end_time=DAY + 3 * DAY_S)
        assert [bucket.start_time for bucket in page.data] == [DAY + n * DAY_S for n in range(3)]
        assert [bucket.end_time - bucket.start_time for bucket in page.data] == [DAY_S] * 3
        (first,), nothing, (last,) = (bucket.results for bucket in page.data)
        assert nothing == []
        assert (first.input_tokens, first.input_cached_tokens, first.output_tokens) == (60, 4, 18)
        assert (first.input_uncached_tokens, first.num_model_requests) == (56, 4)
        assert (first.project_id, first.model, first.batch, first.service_tier) == (None, None, None, None)
        assert last.input_tokens == 50
        assert (page.has_more, page.next_page) == (False, None)

        by: Any = ["project_id", "api_key_id", "model", "service_tier", "batch"]
        grouped = organization.usage.completions(
            start_time=DAY, end_time=DAY + DAY_S, bucket_width="1h", group_by=by, limit=24
        )
        found = {
            (start - DAY, each.project_id, each.api_key_id, each.model, each.service_tier, each.batch): (
                each.input_tokens, each.num_model_requests,
            )
            for start, results in ((bucket.start_time, bucket.results) for bucket in grouped.data)
            for each in results
        }  # fmt: skip
        assert found == {
            (0, shop["web"], shop["key_web"], "m1", "default", False): (10, 2),
            (0, shop["app"], shop["key_app"], "m1", "priority", False): (20, 1),
            (3_600, shop["web"], shop["key_web"], "m1", "flex", True): (30, 1),
        }
        minutes = organization.usage.completions(
            start_time=DAY, end_time=DAY + 180, bucket_width="1m", group_by=["model"]
        )
        assert [[each.input_tokens for each in bucket.results] for bucket in minutes.data] == [[10], [20], []]
        pooled = organization.usage.embeddings(start_time=DAY, end_time=DAY + 3 * DAY_S, group_by=["model"])
        assert [(each.model, each.input_tokens) for bucket in pooled.data for each in bucket.results] == [
            ("emb", 40)
        ]


def test_usage_is_narrowed_and_paged(nobody: TestClient, shop: dict[str, str]) -> None:
    with sdk(nobody, shop["viewer"]) as organization:

        def tokens(**asked: Any) -> list[int]:
            page = organization.usage.completions(start_time=DAY, end_time=DAY + 3 * DAY_S, **asked)
            return [each.input_tokens for bucket in page.data for each in bucket.results]

        assert tokens(project_ids=[shop["app"]]) == [20]
        assert tokens(api_key_ids=[shop["key_app"], "key_none"]) == [20]
        assert tokens(models=["none"]) == []
        assert tokens(batch=True) == [30]
        assert tokens(batch=False) == [30, 50]
        assert tokens(project_ids=["prj_x"]) == [], "another tenant's project"
        pages, page = [], None
        while True:
            more = {} if page is None else {"page": page}
            found = organization.usage.completions(start_time=DAY, end_time=DAY + 3 * DAY_S, limit=2, **more)
            pages.append([bucket.start_time for bucket in found.data])
            if not found.has_more:
                break
            page = found.next_page
        assert pages == [[DAY, DAY + DAY_S], [DAY + 2 * DAY_S]]
        for wrong in ({"page": "page_1"}, {"page": "x"}, {"limit": 32}, {"group_by": ["user_id"]},
                      {"user_ids": ["u"]}, {"end_time": DAY}):  # fmt: skip
            with pytest.raises(openai.BadRequestError):
                organization.usage.completions(**({"start_time": DAY} | wrong))


def test_costs_are_the_ledgers_by_project_and_line_item(
    nobody: TestClient, shop: dict[str, str], database: Engine
) -> None:
    with sdk(nobody, shop["viewer"]) as organization:

        def results(**asked: Any) -> list[Any]:
            page = organization.usage.costs(start_time=DAY, end_time=DAY + 3 * DAY_S, **asked)
            return [each for bucket in page.data for each in bucket.results]

        with database.connect() as connection:
            owed = Decimal(str(report_usage(connection, tenant=shop["acme"]).total.amount))
        for by in ([], ["project_id"], ["line_item"], ["project_id", "line_item", "api_key_id"]):
            found = results(group_by=by)
            assert sum(Decimal(each.amount.exact) for each in found) == owed
            assert all(each.amount.currency == "usd" for each in found)
            assert sum(each.amount.value for each in found) == pytest.approx(float(owed))
        items = {
            (each.line_item, each.quantity, each.quantity_unit) for each in results(group_by=["line_item"])
        }
        assert ("m1, cached input", 4, "tokens") in items
        assert ("emb, input", 40, "tokens") in items
        assert {each.project_id for each in results(group_by=["project_id"])} == {shop["web"], shop["app"]}
        with pytest.raises(openai.BadRequestError):
            organization.usage.costs(start_time=DAY, bucket_width="1h")  # type: ignore[arg-type]


def test_costs_have_capacity_and_what_terms_charge_beside_tokens(
    nobody: TestClient, admin: TestClient, shop: dict[str, str], database: Engine, raw_redis: redis.Redis
) -> None:
    """A unit a second from 22:13:20 on, for an hour at 2 USD, 6,400 s of two days; 36 unit-seconds short."""
    begins = START_MS
    with database.begin() as connection:
        sign(connection, OURS, shop["acme"])
        connection.execute(
            text("insert into contract_step values (:id, :from_ms, 1000)"), {"id": OURS, "from_ms": begins}
        )
        connection.execute(
            text("update contract set ends_ms = :ends, effective_end_ms = :ends"),
            {"ends": begins + 6_400_000 + 7_200_000},
        )
        connection.execute(SHORT_MINUTE, {"id": OURS, "minute": begins - begins % 60_000})
        set_capacity_price(connection, contracts.find(connection, OURS), "2", 100, 0, begins)
        set_terms(connection, shop["acme"], Terms(commitment=Money.parse("50")), 0)
        tenant = tenants.find(connection, shop["acme"])
        made = close(connection, raw_redis, tenant, "2023-11", issuer="us", key=KEY, now_ms=begins)
        given_back = Money.parse("1.23")
        credit_notes.issue(
            connection, made.number, given_back, "an outage", issuer="us", key=KEY, now_ms=1000 * DAY
        )
    start, end = DAY - DAY_S, DAY + 3 * DAY_S
    november = 1_698_796_800
    with sdk(nobody, shop["viewer"]) as organization:
        page = organization.usage.costs(start_time=november, end_time=end, limit=30, group_by=["line_item"])
        found = {
            (bucket.start_time, each.line_item): each.amount.exact
            for bucket in page.data
            for each in bucket.results
            if each.quantity is None
        }
        (commitment,) = (found.pop(place) for place in [*found] if place[1] == "commitment")
        assert found == {
            (start, f"reserved capacity, {OURS}"): "3.555555555556",
            (start, f"capacity that was short, {OURS}"): "-0.02",
            (DAY, f"reserved capacity, {OURS}"): "4.00",
            (DAY, "credit note"): "-1.23",
        }
        assert Decimal("42.4") < Decimal(commitment) < Decimal("42.5")
        with database.connect() as connection:
            tokens = report_usage(connection, tenant=shop["acme"]).total.amount
        whole = Decimal(str(tokens)) + sum(map(Decimal, found.values())) + Decimal(commitment)
        for by in ([], ["project_id"], ["line_item", "api_key_id"]):
            asked = {"start_time": november, "end_time": end, "limit": 30, "group_by": by}
            results = [each for bucket in organization.usage.costs(**asked).data for each in bucket.results]
            assert sum(Decimal(each.amount.exact) for each in results) == whole, by
            # Of one project there are tokens only.
            mine = organization.usage.costs(**asked, project_ids=[shop["web"], shop["app"]])
            of_it = [Decimal(each.amount.exact) for bucket in mine.data for each in bucket.results]
            assert sum(of_it) == Decimal(str(tokens))


def test_projects_keys_limits_and_changes_are_listed_by_pages(
    nobody: TestClient, admin: TestClient, shop: dict[str, str], made: Made, key_of: KeyOf
) -> None:
    for model, amount in (("*", 60), ("m1", 5)):
        limit = {"tenant": "acme", "model": model, "requests_per_minute": amount}
        assert admin.put("/admin/v1/limits", json=limit).status_code == 200
    with sdk(nobody, shop["viewer"]) as organization:
        listed = list(organization.projects.list(limit=1))
        assert [each.name for each in listed] == ["default", "web", "app"]
        web = organization.projects.retrieve(shop["web"])
        assert (web.id, web.status, web.archived_at) == (shop["web"], "active", None)
        (key,) = list(organization.projects.api_keys.list(shop["web"]))
        assert (key.id, key.name, key.owner_project_access) == (shop["key_web"], "of web", "active")
        assert key.redacted_value.startswith("sk-…") or "…" in key.redacted_value
        found = list(organization.projects.rate_limits.list_rate_limits(shop["web"], limit=1))
        assert [(each.model, each.max_requests_per_1_minute) for each in found] == [("*", 60), ("m1", 5)]
        for refused in (organization.admin_api_keys.list, organization.audit_logs.list):
            with pytest.raises(openai.PermissionDeniedError):
                refused()
        with pytest.raises(openai.NotFoundError):
            organization.projects.retrieve("prj_x")
        with pytest.raises(openai.BadRequestError):
            organization.projects.list(after="proj_none")
    assert admin.delete(f"/admin/v1/keys/{shop['key_app']}").status_code == 200
    with sdk(nobody, key_of(Role.ADMIN)) as organization:
        assert [each.id for each in organization.projects.api_keys.list(shop["app"])] == []
        roles = [each.owner.role for each in organization.admin_api_keys.list(limit=1, order="asc")]
        assert roles == ["viewer", "admin"]
        changes = list(organization.audit_logs.list(limit=3))
        assert len({each.id for each in changes}) == len(changes) > 6
        assert [int(each.id) for each in changes] == sorted((int(each.id) for each in changes), reverse=True)
        types = {each.type for each in changes}
        assert {"project.created", "api_key.created", "api_key.deleted", "rate_limit.created"} <= types
        assert all(each.actor.api_key.id for each in changes)
        later = changes[0].effective_at + 60
        assert not list(organization.audit_logs.list(effective_at={"gte": later}))
        assert list(organization.audit_logs.list(effective_at={"lt": later}))


def test_the_platform_sees_every_tenant_and_a_tenant_only_itself(
    nobody: TestClient, shop: dict[str, str], key_of: KeyOf
) -> None:
    span: Any = {"start_time": DAY, "end_time": DAY + DAY_S}
    with sdk(nobody, key_of(Role.AUDITOR)) as organization:
        (everything,) = organization.usage.completions(**span).data[0].results
        assert everything.input_tokens == 60 + 99
        (named,) = organization.usage.completions(**span, extra_query={"tenant": "other"}).data[0].results
        assert named.input_tokens == 99
        (minute,) = organization.usage.completions(
            start_time=DAY, end_time=DAY + 60, bucket_width="1m"
        ).data[0].results  # fmt: skip
        assert minute.input_tokens == 10 + 99
    with sdk(nobody, shop["viewer"]) as organization, pytest.raises(openai.NotFoundError):
        organization.usage.completions(**span, extra_query={"tenant": "other"})
    with sdk(nobody, "sk-" + "a" * 43) as organization, pytest.raises(openai.PermissionDeniedError):
        organization.usage.completions(**span)
    with sdk(nobody, "sk-admin-" + "a" * 43) as organization, pytest.raises(openai.AuthenticationError):
        organization.usage.completions(**span)


def test_an_instance_that_pools_counts_as_pooling_also_for_a_model_that_generates(
    nobody: TestClient, shop: dict[str, str], database: Engine
) -> None:
    with database.begin() as connection:
        connection.execute(
            text(
                "insert into instance (instance_id, model, pool, cell, url, epoch, abort, routes, "
                "baseline_prompt, baseline_generation) values ('i-pool', 'm1', 'm1/pooling', 'm1/pooling', "
                "'http://h:1', 'e', true, :routes, 0, 0)"
            ),
            {"routes": list(POOLING_ROUTES)},
        )
        of: Any = {"tenant": shop["acme"], "project": shop["web"], "key_id": shop["key_web"]}
        pooled = event("p1", (7, 0, 1), ended_ms=DAY * 1000, instance="i-pool", route="score", **of)
        record_events(connection, [ReceivedEvent.read(pooled.to_json())])
    with sdk(nobody, shop["viewer"]) as organization:
        span: Any = {"start_time": DAY, "end_time": DAY + DAY_S}
        (embedded,) = organization.usage.embeddings(**span).data[0].results
        assert embedded.input_tokens == 7
        (written,) = organization.usage.completions(**span).data[0].results
        assert written.input_tokens == 60
