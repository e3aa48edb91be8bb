"""What Prometheus does with the product, done by hand: ask for the list of targets, ask every target, add
figures up over all of them.
"""

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from billing.wire import redis_keys
from loadtest import plain_http
from loadtest.forked import Program
from tests.billing.engine_server import ScriptedEngine, register, serve
from tests.billing.events import event
from tests.billing.test_process import ADMIN_KEY, BillingProcess, stopped_at_the_end
from tests.fixtures.engine import SimEngine
from tests.fixtures.forked import start_module
from tests.fixtures.gateway import StartGateway, wait_until
from tests.fixtures.valkey import free_port
from tests.serving.conftest import FAKE_ENGINE

ROOT = Path(__file__).resolve().parents[2]
SERVICE_KEY = "a-service-key"
# Units that the product measures in, as names of metrics end; a counter has `_total` behind it, which the
# parser takes off.
UNITS = ("seconds", "bytes", "tokens", "units", "ratio", "requests", "entries", "sequences", "tenants",
"processes", "instances",
         "units_per_second", "timestamp_seconds")  # fmt: skip
Groups = list[dict[str, Any]]


class Product:
    """One billing process, and what a test starts beside it."""

    def __init__(self, billing: BillingProcess) -> None:
        self.billing = billing

    def listed(self) -> Groups:
        """The answer to Prometheus, who knows the service key alone."""
        answer = plain_http.get(
            f"http://127.0.0.1:{self.billing.admin_port}/admin/v1/scrape-targets",
            headers={"authorization": f"Bearer {SERVICE_KEY}"},
            timeout=10,
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        groups: Groups = answer.json()
        return groups

    def admin(self, path: str, **body: Any) -> dict[str, Any]:
        """Create something by the admin API."""
        url = f"http://127.0.0.1:{self.billing.admin_port}/admin/v1/{path}"
        answer = plain_http.post(url, headers={"authorization": f"Bearer {ADMIN_KEY}"}, json=body, timeout=20)
        assert answer.is_success, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def serve(self, engine: SimEngine) -> str:
        """Add an engine of the model `sim` by hand, and a tenant; the tenant's key."""
        self.admin("models", name="sim", context_tokens=2048)
        self.admin("prices", model="sim", input="1", output="1")
        self.admin("instances", model="sim", url=engine.url, key=engine.key, instance="by-hand")
        tenant = self.admin("tenants", name="acme")["tenant"]
        key: str = self.admin("keys", tenant=tenant)["key"]
        return key

    def jobs(self) -> Counter[str]:
        """How many targets each kind of process has."""
        return Counter(group["labels"]["job"] for group in self.listed() for _ in group["targets"])

    def await_jobs(self, **wanted: int) -> None:
        wait_until(
            lambda: self.jobs() == Counter(wanted), f"list of {wanted}, but {self.jobs()}", timeout_s=30
        )

    def pages(self, job: str) -> list[str]:
        """What the targets of a job answer."""
        return [
            scrape(target, group["labels"])
            for group in self.listed()
            if group["labels"]["job"] == job
            for target in group["targets"]
        ]

    def total(self, series: str, job: str = "billing") -> float | None:
        """`sum(SERIES)` over all targets of a job; None where no target has it, as in Prometheus."""
        found = [values[series] for page in self.pages(job) if series in (values := samples(page))]
        return sum(found) if found else None


def scrape(target: str, labels: dict[str, str]) -> str:
    """As Prometheus makes the URL of a target."""
    url = f"{labels.get('__scheme__', 'http')}://{target}{labels.get('__metrics_path__', '/metrics')}"
    return plain_http.get(url, timeout=10).raise_for_status().text


def samples(page: str) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")]
    return {series: float(value) for series, value in lines}


@contextmanager
def billing_runs(database_url: str, valkey_url: str, folder: Path) -> Iterator[Product]:
    """An installation, as this billing process tells of it."""
    with stopped_at_the_end(database_url, valkey_url, folder) as billing:
        billing.environment["TAAS_SERVICE_KEY"] = SERVICE_KEY
        billing.start()
        wait_until(billing.healthy, "billing", timeout_s=60)
        yield Product(billing)


@pytest.fixture
def product(migrated_database_url: str, valkey_url: str, tmp_path: Path) -> Iterator[Product]:
    with billing_runs(migrated_database_url, valkey_url, tmp_path) as made:
        yield made


@pytest.fixture
def second_billing(
    product: Product, migrated_database_url: str, valkey_url: str, tmp_path: Path
) -> Iterator[Product]:
    """The same installation, as its second billing process tells of it."""
    folder = tmp_path / "second"
    folder.mkdir()
    with billing_runs(migrated_database_url, valkey_url, folder) as made:
        yield made


@pytest.fixture
def worker(product: Product, valkey_url: str, tmp_path: Path) -> Iterator[Program]:
    """A worker over the fake engine, on an address of its own."""
    product.admin("models", name="m", context_tokens=2048, engine_model="m-engine")
    model, python = tmp_path / "model", tmp_path / "python"
    model.mkdir()
    (model / "config.json").write_text("{}")
    # Called as `python -m vllm.entrypoints.openai.api_server …`.
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {FAKE_ENGINE} "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {
        "TAAS_HOME": str(tmp_path), "TAAS_REDIS_URL": valkey_url, "TAAS_VLLM_PYTHON": str(python),
        "TAAS_ENGINE_PORT_FIRST": str(free_port()), "TAAS_WORKER_METRICS_PORT_FIRST": str(free_port()),
        "FAKE_PIDS": str(tmp_path / "pids"),
    }  # fmt: skip
    command = ("serving", "m", "--path", str(model), "--host", "127.0.0.2")
    with ExitStack() as stack:
        process = start_module(*command, environment=environment, log=tmp_path / "worker.log")
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        yield process


def test_every_process_that_runs_is_listed_and_answers_and_one_that_has_gone_is_not(
    product: Product,
    worker: Program,
    start_gateway: StartGateway,
    engine: SimEngine,
) -> None:
    product.serve(engine)
    first, second = (start_gateway() for _ in range(2))
    product.await_jobs(gateway=2, billing=1, worker=1, engine=2)
    engines = {
        group["labels"].get("engine"): group
        for group in product.listed()
        if group["labels"]["job"] == "engine"
    }
    assert engines["by-hand"] == {
        "targets": [engine.url.removeprefix("http://")],
        "labels": {"job": "engine", "engine": "by-hand", "model": "sim", "pool": "sim"},
    }
    for group in product.listed():
        assert "instance" not in group["labels"]
        (target,) = group["targets"]
        assert scrape(target, group["labels"])
    (its_worker,) = (group["targets"][0] for group in product.listed() if group["labels"]["job"] == "worker")
    assert its_worker.startswith("127.0.0.2:")

    first.terminate()
    wait_until(lambda: product.jobs()["gateway"] == 1, "list without the one that ended")
    second.kill()
    product.await_jobs(billing=1, worker=1, engine=2)
    worker.send_signal(signal.SIGTERM)
    engine.kill()
    product.await_jobs(billing=1)


def test_pages_keep_the_conventions_of_prometheus(
    product: Product,
    worker: Program,
    start_gateway: StartGateway,
    engine: SimEngine,
) -> None:
    key = product.serve(engine)
    gateway = start_gateway(TAAS_GATEWAY_PROCESSES="2")
    with gateway.client(key) as client:
        body = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    product.await_jobs(gateway=2, billing=1, worker=1, engine=2)
    finished = 'taas_requests_total{class="on_demand",ending="complete",model="sim",route="chat"}'
    wait_until(lambda: product.total(finished, "gateway") == 1, "one finished request in the sum")
    assert product.total("taas_gateway_processes", "gateway") == 2
    billed = 'taas_usage_events_total{ending="complete",model="sim",pricing="priced"}'
    wait_until(lambda: product.total(billed) == 1, "bill")
    wrong = []
    for job in ("gateway", "billing", "worker"):
        for page in product.pages(job):
            assert f'taas_build_info{{version="{VERSION}"}} 1.0' in page
            wrong += [f"{job}: {told}" for told in breaches(page)]
    assert wrong == []


VERSION = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]  # type: ignore[index]


def breaches(page: str) -> Iterator[str]:
    """What `promtool check metrics` looks for, and our own: sentences for help texts, and no label that
    Prometheus needs.
    """
    seen = set()
    for family in text_string_to_metric_families(page):
        name = family.name
        if name in seen:
            yield f"{name} stands there twice"
        seen.add(name)
        if not re.fullmatch(r"taas_[a-z0-9_]+", name):
            yield f"{name} is not named as ours"
        if not re.fullmatch(r"[A-Z0-9][^\n]* [^\n]*[a-z0-9)]\.", family.documentation):
            yield f"{name}: its help is no sentence: {family.documentation!r}"
        if family.type == "unknown":
            yield f"{name} has no type"
        if family.type != "counter" and name.endswith(("_total", "_count", "_sum", "_bucket")):
            yield f"{name} ends as if it were of another type"
        if re.search(r"_(ms|milliseconds|us|minutes|hours|kb|kib|mb|percent)(_|$)", name):
            yield f"{name} is not in a base unit"
        if family.type == "histogram" and not name.endswith("_seconds"):
            yield f"{name} is a histogram without its unit"
        for sample in family.samples:
            if family.type == "counter" and not sample.name.endswith("_total"):
                yield f"{sample.name} is a counter without _total"
            for label in sample.labels:
                if label in {"instance", "job"} or not re.fullmatch(r"[a-z][a-z_]*", label):
                    yield f"{sample.name} has a label {label!r}"


def test_what_all_billing_processes_see_is_exported_once_and_by_another_when_one_dies(
    product: Product, second_billing: Product, valkey_url: str
) -> None:
    residual = 'taas_audit_residual_tokens{engine="i1",kind="prompt"}'
    ready = 'taas_instances{model="m1",pool="m1",status="ready"}'
    lag = 'taas_usage_stream_lag_entries{cell="m1"}'

    def shown_by(process: BillingProcess) -> bool:
        return process.metric(residual) is not None

    with (
        serve(ScriptedEngine(prompt=30, generation=12)) as engine,
        redis.Redis.from_url(valkey_url) as client,
    ):
        register(client, engine, lease_until_ms=4_000_000_000_000)
        client.xadd(
            redis_keys.usage_stream("m1"), {redis_keys.USAGE_FIELD: event("a", tokens=(10, 0, 7)).to_json()}
        )
        product.await_jobs(billing=2, engine=1)
        for series, value in ((residual, 20), (ready, 1), (lag, 0)):
            wait_until(lambda s=series, v=value: product.total(s) == v, f"{series} of {value}", timeout_s=30)  # type: ignore[misc]
        leading: list[bool] = []

        def one_leads() -> bool:
            leading[:] = [shown_by(each.billing) for each in (product, second_billing)]
            return leading.count(True) == 1

        wait_until(one_leads, "one that exports")
        leader, other = (product, second_billing) if leading[0] else (second_billing, product)
        leader.billing.end(signal.SIGKILL)
        other.await_jobs(billing=1, engine=1)
        for series, value in ((residual, 20), (ready, 1), (lag, 0)):
            wait_until(lambda s=series, v=value: other.total(s) == v, f"{series} of {value}", timeout_s=30)  # type: ignore[misc]
