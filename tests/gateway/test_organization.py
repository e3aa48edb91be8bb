"""`/v1/organization` through a gateway: OpenAI's SDK with an admin key reaches what billing answers, and
nothing else of the admin API.
"""

import openai
import pytest
from sqlalchemy import create_engine

from billing.accounts import admin_keys
from billing.accounts.roles import Caller, Role
from tests.fixtures.gateway import Catalogue, StartGateway
from tests.fixtures.valkey import free_port
from tests.gateway.test_idempotency import Books, books, start  # noqa: F401


def test_the_sdks_admin_client_works_through_a_gateway(
    catalogue: Catalogue,
    start: StartGateway,  # noqa: F811
    books: Books,  # noqa: F811
    migrated_database_url: str,
    start_gateway: StartGateway,
) -> None:
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        root = Caller("root", Role.ROOT)
        key = admin_keys.create(connection, root, Role.VIEWER, tenant_id=books.tenant).secret
    engine.dispose()
    gateway, alone = start(), start_gateway(TAAS_ADMIN_URL=f"http://127.0.0.1:{free_port()}")
    with openai.OpenAI(base_url=f"{gateway.url}/v1", admin_api_key=key, max_retries=0) as client:
        organization = client.admin.organization
        page = organization.usage.completions(start_time=0, end_time=86_400, group_by=["project_id", "model"])
        assert [bucket.results for bucket in page.data] == [[]]
        assert [each.name for each in organization.projects.list()] == ["default"]
        with pytest.raises(openai.BadRequestError) as wrong:
            organization.usage.completions(start_time=0, limit=99)
        assert wrong.value.param == "limit"
        with pytest.raises(openai.PermissionDeniedError):
            organization.admin_api_keys.list()
    for bearer, status, kind in (
        (catalogue.key(catalogue.tenant("ten_a")), 403, "permission_error"),
        ("sk-nobodys", 403, "permission_error"),
        ("sk-admin-" + "a" * 43, 401, "authentication_error"),
        ("adm-test", 401, "invalid_request_error"),
    ):
        with gateway.client(bearer) as caller:
            refused = caller.get("/v1/organization/projects")
            assert (refused.status_code, refused.json()["error"]["type"]) == (status, kind), bearer
    with gateway.client(key) as caller:
        answer = caller.get("/v1/organization/projects")
        assert answer.headers["x-request-id"].startswith("req_")
        assert caller.post("/v1/organization/projects", json={}).status_code == 405
        for other in ("/v1/organization/users", "/v1/organization/projects/..%2f..%2fadmin/v1/tenants",
                      "/v1/organization/../../admin/v1/tenants", "/admin/v1/tenants"):  # fmt: skip
            assert caller.get(other).status_code in {400, 404}, other
    with alone.client(key) as caller:
        away = caller.get("/v1/organization/projects")
        assert (away.status_code, away.json()["error"]["code"]) == (503, "usage_unavailable")
