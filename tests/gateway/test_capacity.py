"""`GET /v1/capacity`: a tenant reads what came of its own contracts, and nothing of anybody else or of our
machines.
"""

import threading
from collections.abc import Iterator

import pytest
import redis
import uvicorn
from sqlalchemy import create_engine, insert

from billing.api.app import build_app
from billing.contracts import lifecycle
from billing.schema.capacity import contract_minute
from billing.settings import BillingSettings
from loadtest import plain_http
from tests.billing.contracts.selling import T0, furnish, terms
from tests.fixtures.gateway import Catalogue, StartGateway, wait_until
from tests.fixtures.valkey import free_port

SERVICE_KEY = "svc-test"
SPAN = {"from": "2027-01-15T08:00:00Z", "until": "2027-01-15T09:00:00Z"}


class Sold:
    """A live admin API, and by tenant's name its id and its contract."""

    def __init__(self, url: str, tenants: dict[str, str], contracts: dict[str, str]) -> None:
        self.url = url
        self.tenants = tenants
        self.contracts = contracts


@pytest.fixture
def sold(migrated_database_url: str, valkey_url: str) -> Iterator[Sold]:
    """acme and bolt have a contract each, with one minute of evidence."""
    engine = create_engine(migrated_database_url)
    contracts = {}
    with engine.begin() as connection:
        shop = furnish(connection)
        for number, name in enumerate(("acme", "bolt")):
            draft = lifecycle.draft(connection, terms(shop.tenants[name], 10), now_ms=T0)
            contracts[name] = lifecycle.sign(connection, draft.contract_id, now_ms=T0).contract_id
            connection.execute(
                insert(contract_minute).values(
                    contract_id=contracts[name], minute_ms=T0, assigned_mu=600_000, used_mu=number * 1_500,
                    lent_mu=0, borrowed_mu=0, refused=0, cut_mu=0, missing_mu=500,
                )
            )  # fmt: skip
    port = free_port()
    with redis.Redis.from_url(valkey_url) as client:
        app = build_app(BillingSettings(admin_key="adm-test", service_key=SERVICE_KEY), engine, client)
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until(lambda: server.started, "admin API")
        yield Sold(f"http://127.0.0.1:{port}", shop.tenants, contracts)
        server.should_exit = True
        thread.join()
    engine.dispose()


def test_a_tenant_reads_what_came_of_its_own_contract(
    sold: Sold, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    keys = {name: catalogue.key(catalogue.tenant(sold.tenants[name])) for name in ("acme", "bolt", "core")}
    gateway = start_gateway(TAAS_ADMIN_URL=sold.url, TAAS_SERVICE_KEY=SERVICE_KEY)
    with gateway.client(keys["bolt"]) as client:
        answer = client.get("/v1/capacity", params=SPAN)
        assert answer.status_code == 200, answer.text
        line = {"contract": sold.contracts["bolt"], "assigned": "600", "used": "1.5", "lent": "0",
        "borrowed": "0", "refused": 0,
                "shortfall": "0.5", "missing": "0.5"}  # fmt: skip
        assert answer.json() == SPAN | {"data": [line | {"minute": SPAN["from"]}], "total": [line]}
        # What is asked for cannot name another tenant.
        same = client.get("/v1/capacity", params=SPAN | {"tenant": sold.tenants["acme"]})
        assert same.json() == answer.json()
        theirs = client.get("/v1/capacity", params=SPAN | {"contract": sold.contracts["acme"]})
        nobodys = client.get("/v1/capacity", params=SPAN | {"contract": "con_none"})
        assert (theirs.status_code, theirs.json()) == (nobodys.status_code, nobodys.json())
        assert theirs.status_code == 404
        bad = client.get("/v1/capacity", params={"from": "yesterday"})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "from")
        assert client.get("/v1/capacity", params={"contract": "c" * 129}).status_code == 400
    with gateway.client(keys["core"]) as client:
        assert client.get("/v1/capacity", params=SPAN).json()["data"] == []
    assert plain_http.get(gateway.url + "/v1/capacity").status_code == 401


def test_without_the_admin_api_it_says_try_later(catalogue: Catalogue, start_gateway: StartGateway) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_ADMIN_URL=f"http://127.0.0.1:{free_port()}")
    with gateway.client(key) as client:
        answer = client.get("/v1/capacity")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "usage_unavailable")
