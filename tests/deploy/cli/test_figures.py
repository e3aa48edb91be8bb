"""Tables of figures: usage with a sum, receipts, and the audit's pairs."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import create_engine

from billing.ledger.entries import ReceivedEvent, record_events
from billing.wire.usage_event import CapacityClass
from tests.billing.events import event
from tests.deploy.cli.conftest import Taas

Told = Callable[..., Any]
EVER = ("--from", "2020-01-01")


@pytest.fixture
def used(told: Told, migrated_database_url: str) -> None:
    """Two priced requests of `acme`, in two hours."""
    tenant = told("tenant", "create", "acme")["tenant"]
    told("model", "add", "m1", "--context", "2048")
    told("price", "set", "--model", "m1", "--input", "0.10", "--output", "0.40", "--from", "2020-01-01")
    decision = {
        "asked": "auto",
        "why": "within_contract",
        "level_before_mu": 1_500,
        "level_after_mu": 12_000,
        "rate_mu_s": 500_000,
    }
    first = event("req_1", (1000, 200, 50), tenant=tenant, class_=CapacityClass.RESERVED, contract="con_1")
    first = replace(first, decision=decision, waited_ms=40)
    second = event("req_2", (2000, 0, 10), tenant=tenant, started_ms=first.started_ms + 3_600_000)
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        record_events(connection, [ReceivedEvent.read(each.to_json()) for each in (first, second)])
    engine.dispose()


def test_usage_by_hour_has_a_line_each_and_a_sum(taas: Taas, told: Told, used):
    lines = [
        line.split()
        for line in taas("usage", "--tenant", "acme", "--by", "model,hour", *EVER).stdout.splitlines()
    ]
    assert lines[0][:2] == ["from", "2020-01-01"]
    assert lines[2:] == [
        ["MODEL", "HOUR", "(UTC)", "REQUESTS", "INPUT", "CACHED", "INPUT", "OUTPUT", "ABSORBED", "USD"],
        ["m1", "2023-11-14", "22:00", "1", "800", "200", "50", "0", "0.00012"],
        ["m1", "2023-11-14", "23:00", "1", "2,000", "0", "10", "0", "0.000204"],
        ["total", "2", "2,800", "200", "60", "0", "0.000324"],
        [],
        ["MODEL", "PRICE", "TOKENS", "OF", "TOKENS", "USD", "A", "MILLION", "USD"],
        ["m1", "no.", "1", "input", "2,800", "0.10", "0.00028"],
        ["m1", "no.", "1", "cached", "input", "200", "0.10", "0.00002"],
        ["m1", "no.", "1", "output", "60", "0.40", "0.000024"],
    ]
    assert "nothing was used from" in taas("usage").stdout
    assert told("usage", "--by", "tenant", *EVER)["lines"][0]["tenant_name"] == "acme"
    assert "acme" in taas("usage", "--by", "tenant", *EVER).stdout


def test_a_finding_is_assigned_and_resolved(taas: Taas, told: Told, used: None) -> None:
    told("model", "add", "m2", "--context", "2048", "--visible", "everyone")
    taas("audit")
    (row,) = told("finding", "list", "--kind", "not_for_sale")["data"]
    assert (row["state"], row["said"]["ids"]) == ("open", ["m2"])
    assert "acknowledged" in taas("finding", "assign", row["finding"], "--owner", "ada").stdout
    resolved = told("finding", "resolve", row["finding"], "--reason", "sold from May on")
    assert (resolved["owner"], resolved["state"]) == ("ada", "resolved")
    assert "sold from May on" in taas("finding", "list", "--state", "resolved").stdout
    assert row["finding"] not in taas("finding", "list", "--state", "open").stdout


def test_usage_is_exported_and_verified(taas: Taas, used: None, tmp_path: Path) -> None:
    export, public = tmp_path / "acme.ndjson", tmp_path / "evidence.pub"
    public.write_text(taas("evidence", "key").stdout)
    taas("export", "--tenant", "acme", *EVER, "--format", "ndjson", "--out", str(export))
    verify = [sys.executable, "-m", "deploy.taas_verify", str(export), "--key", str(public)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 entries, 2 receipts, 1 checkpoints" in done.stdout
    assert "owed for it: 0.000324 USD" in done.stdout
    export.write_text(export.read_text().replace('"billed_output":50', '"billed_output":51'))
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, "request req_1 (position 1): its event part" in done.stdout) == (1, True)
    assert taas("export", "--tenant", "acme", *EVER).stdout.count("\n") == 6
    cloud = taas("export", "--tenant", "acme", *EVER, "--format", "cloudevents").stdout.splitlines()
    assert [json.loads(line)["id"] for line in cloud] == ["req_1", "req_2"]
    stripe = taas("export", "--tenant", "acme", *EVER, "--format", "stripe", "--customer", "cus_1").stdout
    assert {e["payload"]["stripe_customer_id"] for e in json.loads(stripe)["events"]} == {"cus_1"}
    rows = taas("export", "--tenant", "acme", *EVER, "--format", "csv").stdout.splitlines()
    assert (len(rows), rows[1].split(",")[0]) == (3, "req_1")
    table = tmp_path / "acme.parquet"
    taas("export", "--tenant", "acme", *EVER, "--format", "parquet", "--out", str(table))
    assert table.read_bytes()[:4] == b"PAR1"
    charges = taas("export", "--tenant", "acme", *EVER, "--format", "focus-1.4").stdout.splitlines()
    head, *rows = csv.reader(charges)
    cost = head.index("BilledCost")
    assert sum(Decimal(row[cost]) for row in rows) == Decimal("0.000324")
    named = "ChargePeriodStart,BilledCost"
    few = taas("export", "--tenant", "acme", *EVER, "--format", "focus-1.2", "--columns", named).stdout
    assert few.splitlines()[0] == "BilledCost,ChargePeriodStart"
    taas("export", "--tenant", "acme", *EVER, "--format", "focus-1.2", "--columns", "Cost", exit_code=1)
    taas("export", "--tenant", "acme", *EVER, "--format", "focus-1.2", "--dataset", "billing-period",
         exit_code=1)  # fmt: skip
    taas("export", "--tenant", "acme", *EVER, "--format", "focus-1.4", "--out", str(table))
    assert table.read_bytes()[:4] == b"PAR1"
    assert "no day is over yet" in taas("checkpoint", "list", "--tenant", "acme").stdout
    head = json.loads(taas("checkpoint", "now", "--tenant", "acme", "--json").stdout)
    link = json.loads(taas("export", "--tenant", "acme", *EVER).stdout.splitlines()[-2])
    assert head["checkpoint"] | {"at_ms": 0} == link["checkpoint"] | {"at_ms": 0}
    taas("export", "--tenant", "nobody", *EVER, "--out", str(tmp_path / "none"), exit_code=1)
    assert not list(tmp_path.glob("none*"))
    taas("export", "--tenant", "acme", exit_code=2)


def test_what_providers_charge_is_shown_beside_what_tenants_pay(
    taas: Taas, told: Told, used: None, migrated_database_url: str
):
    told("price", "set", "--cost", "--model", "m1", "--input", "0.05", "--cached-input", "0.01",
         "--cache-write", "0.08", "--output", "0.20", "--from", "2020-01-01")  # fmt: skip
    tenant = told("tenant", "show", "acme")["tenant"]
    provider = {"kind": "anthropic", "model": "claude-x", "usage": {"input_tokens": 700}}
    bought = replace(event("req_3", (1000, 200, 50, 100), tenant=tenant), provider=provider)
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        record_events(connection, [ReceivedEvent.read(bought.to_json())])
    engine.dispose()
    lines = [line.split() for line in taas("usage", "--by", "model", *EVER).stdout.splitlines()]
    # 700 × 0.05 + 200 × 0.01 + 100 × 0.08 + 50 × 0.20, of a million.
    assert lines[3][-2:] == ["0.000055", "0.000389"]
    assert lines[2][-3:] == ["USD", "COST", "MARGIN"]
    assert lines[3][:6] == ["m1", "3", "3,500", "400", "100", "110"]
    assert ["m1", "i1", "no.", "1", "cache", "write", "100", "0.08", "0.000008"] in lines
    shown = taas("request", "show", "req_3").stdout
    assert "kind anthropic, model claude-x" in shown


def test_a_receipt_shows_what_was_billed_and_why(taas: Taas, used):
    shown = taas("request", "show", "req_1").stdout
    for words in (
        "complete",
        "prompt 1000, cached 200, output 50",
        "0.00012",
        "2023-11-14 22:13:20",
        "reserved",
        "con_1",
    ):
        assert words in shown
    assert (
        "admitted: within its contract; asked for auto; level 1.5 before, 12 after, at 500 a second" in shown
    )


def test_a_receipt_shows_every_field_that_the_api_has(taas: Taas, told: Told, used):
    shown = taas("request", "show", "req_1").stdout.splitlines()
    named = [line.split("  ")[0] for line in shown]
    moments = {
        "started_ms": "started (UTC)",
        "first_token_ms": "first token (UTC)",
        "ended_ms": "ended (UTC)",
    }
    assert named == [moments.get(name, name) for name in told("request", "show", "req_1")]
    values = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in shown}
    assert values["produced"] == "prompt 1000, cached 200, output 50"
    assert (values["orphan"], values["first token (UTC)"]) == ("no", "2023-11-14 22:13:20")
    assert values["price"] == "price_id 1, input 0.10, cached_input 0.10, cache_write 0.10, output 0.40"


def test_an_audit_shows_what_no_engine_accounts_for(taas: Taas, told: Told, used):
    report = told("audit")
    (instance,) = report["instances"]
    assert (instance["instance"], instance["billed"]) == ("i1", {"prompt": 3000, "generation": 60})
    shown = taas("audit").stdout
    assert "3000/60" in shown
    assert f"residual: {report['residual_tokens']} tokens" in shown
    for finding in report["findings"]:
        assert finding["message"] in shown
