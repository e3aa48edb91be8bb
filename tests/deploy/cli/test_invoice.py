"""Terms, credits, prices of capacity and invoices by the command, as an operator uses them."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine

from billing.audit.finding_rows import keep
from billing.findings import Finding, FindingKind
from billing.ledger.entries import ReceivedEvent, record_events
from billing.wire.usage_event import CapacityClass
from deploy.cli.main import main
from tests.billing.events import event
from tests.deploy.cli.conftest import Taas

NOVEMBER_MS = 1_698_796_800_000
HOUR_MS = 3_600_000


def test_a_month_from_its_terms_to_its_credit_note(
    taas: Taas, told: Callable[..., Any], migrated_database_url: str, tmp_path: Path
) -> None:
    made = told("tenant", "create", "acme", "--time-zone", "Europe/Berlin")
    assert made["time_zone"] == "Europe/Berlin"
    tenant = made["tenant"]
    told("model", "add", "m", "--context", "4096")
    told("price", "set", "--model", "m", "--input", "1", "--output", "2", "--from", "2023-01-01")
    batch = told("price", "set", "--model", "m", "--class", "batch", "--discount", "50")
    assert (batch["class"], batch["output"]) == ("batch", "1.00")
    check_price_files(taas, told, tmp_path / "prices.yaml")
    terms = told(
        "terms", "set", "--tenant", "acme", "--tax", "19", "--tax-name", "VAT", "--tier", "1:50", "--from",
        "2023-11-01",
    )  # fmt: skip
    assert terms["from_ms"] == NOVEMBER_MS - HOUR_MS, "the tenant's midnight, so November has them"
    assert terms["tiers"] == [{"above": "1.00", "percent": 50}]
    assert told("terms", "list", "--tenant", "acme")["data"] == [terms]
    credit = told("credit", "grant", "--tenant", "acme", "--usd", "5", "--expires", "90d")
    assert (credit["usd"], credit["left"]) == ("5.00", "5.00")
    odd = taas("credit", "grant", "--tenant", "acme", "--usd", "0.005", exit_code=1).output
    assert "A credit is of whole cents" in odd, "what is due is, too"
    engine = create_engine(migrated_database_url)
    used = event("req_1", (10**6, 0, 10**6), tenant=tenant, model="m", started_ms=NOVEMBER_MS)
    with engine.begin() as connection:
        record_events(connection, [ReceivedEvent.read(used.to_json())])
    engine.dispose()
    lost = Finding(kind=FindingKind.USAGE_REJECTED, message="x", count=3)
    with engine.begin() as connection:
        keep(connection, [lost], facts=False)
    engine.dispose()
    # Input 1, output 2, half of what is above 1 off, and the tax.
    made = told("invoice", "close", "--tenant", "acme", "--period", "2023-11", "--yes")
    assert (made["number"], made["net"], made["total"], made["due"]) == ("INV-000001", "2.00", "2.38", "2.38")
    assert told("invoice", "list", "--tenant", "acme")["data"][0]["number"] == "INV-000001"
    shown = taas("invoice", "show", "INV-000001").output
    assert "Volume" not in shown
    assert "uncached_input" in shown
    assert "(usage_rejected): usage that could not be read was set aside; nobody is billed for it" in shown
    document = taas("invoice", "show", "INV-000001", "--document").stdout
    assert json.loads(document) == made["document"]
    assert "same, byte by byte" in taas("invoice", "check", "INV-000001").output
    file = tmp_path / "invoice.pdf"
    taas("invoice", "pdf", "INV-000001", "--out", str(file))
    first = file.read_bytes()
    assert first.startswith(b"%PDF")
    taas("invoice", "pdf", "INV-000001", "--out", str(file))
    assert file.read_bytes() == first
    note = told("invoice", "credit", "INV-000001", "--usd", "0.50", "--reason", "outage", "--yes")
    assert (note["number"], note["total"], note["corrects"]) == ("CN-000001", "-0.60", "INV-000001")
    again = taas("invoice", "close", "--tenant", "acme", "--period", "2023-11", "--yes", exit_code=1)
    assert "2023-12" in again.output


def check_price_files(taas: Taas, told: Callable[..., Any], file: Path) -> None:
    """A discount is of the price beside it, wherever that stands; what is wrong says which price it is."""
    batch, whole = (
        "{model: m, class: batch, discount: 50, from: 30d}",
        "{model: m, input: 2, output: 4, from: 30d}",
    )
    file.write_text(f"[{batch}, {whole}]")
    shown = told("price", "load", str(file), "--dry-run")["prices"]
    assert [(each["class"], each["output"]) for each in shown] == [("batch", "2.00"), (None, "4.00")]
    for prices, why in (
        (f"[{whole}, {{model: m, input: -1, output: 2}}]", "prices.1.input: a price is USD per million"),
        (f"[{whole}, {whole}]", "prices.1: It has the model, class, contract and beginning of prices.0."),
        ("[{model: m, contract: con_1, discount: 5}]", "prices.0.contract: a contract is `con_` and 24"),
    ):
        file.write_text(prices)
        assert why in taas("price", "load", str(file), "--dry-run", exit_code=1).output


def test_what_cannot_be_closed_says_why(
    taas: Taas, told: Callable[..., Any], migrated_database_url: str
) -> None:
    told("tenant", "create", "acme")
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        keep(connection, [Finding(kind=FindingKind.UNPRICED, message="x", count=3)], facts=False)
    engine.dispose()
    drafted = taas("invoice", "close", "--tenant", "acme", "--period", "2999-01", exit_code=1).output
    assert "1 findings unpriced are not resolved: `taas finding list`" in drafted
    month = taas("invoice", "close", "--tenant", "acme", "--period", "2999-01", exit_code=1)
    assert "The period lasts until 2999-02-01T00:00:00Z" in month.output
    may = taas("invoice", "close", "--tenant", "acme", "--period", "May", "--yes", exit_code=1)
    assert "a month such as 2026-11" in may.output
    tax = taas("terms", "set", "--tenant", "acme", "--tax", "abc", exit_code=1).output
    assert "a percentage is from 0 to 100, such as 19 or 7.5" in tax
    assert "periods that begin then" in taas("terms", "set", "--tenant", "acme", "--tax", "7.5").output
    terms_change_one_by_one(taas)
    assert "is no tier" in taas("terms", "set", "--tenant", "acme", "--tier", "5", exit_code=2).output
    assert taas("invoice", "list").output.startswith("no invoices")


def terms_change_one_by_one(taas: Taas) -> None:
    """What is left out stays; what takes it away is said."""

    def now(*words: str) -> list[Any]:
        made = json.loads(taas("terms", "set", "--tenant", "acme", "--json", *words).output)
        return [made[name] for name in ("day", "tax_percent", "tax_name", "commitment", "tiers")]

    tiers = [{"above": "5.00", "percent": 10}]
    assert now("--commitment", "1000", "--day", "5", "--tier", "5:10") == [5, "7.5", None, "1000.00", tiers]
    assert now("--tax", "19", "--tax-name", "VAT") == [5, "19", "VAT", "1000.00", tiers]
    assert now("--commitment", "0", "--no-tiers", "--tax", "0") == [5, "0", "VAT", "0.00", []]
    assert "contradict" in taas("terms", "set", "--tenant", "acme", "--tier", "1:1", "--no-tiers",
    exit_code=2).output  # fmt: skip


def test_a_contract_has_a_price(taas: Taas, told: Callable[..., Any], shop: None) -> None:
    signed = told(
        "contract", "sign", "--tenant", "acme", "--pool", "org/llama", "--units", "500", "--until", "1y",
        "--notice-days", "30", "--yes",
    )["contract"]  # fmt: skip
    assert "on no invoice" in taas("contract", "price", signed).output
    price = told("contract", "price", signed, "--unit-hour", "0.04", "--sla", "200", "--from", "2026-01-01")
    assert (price["unit_hour"], price["sla_percent"]) == ("0.04", 200)
    assert told("contract", "price", signed)["data"] == [price]
    past = taas("contract", "price", signed, "--unit-hour", "9", "--from", "2026-01-01", exit_code=1)
    assert "the past keeps it" in past.output


def test_makers_and_books(taas: Taas, told: Callable[..., Any]) -> None:
    told("model", "add", "m", "--context", "4096")
    made = told("maker", "set", "--model", "m", "--maker", "lab.example", "--share", "12.5")
    assert (made["share_percent"], made["input"], made["from_ms"] % 3_600_000) == ("12.5", None, 0)
    assert told("maker", "list")["data"] == [made]
    assert "share_percent" in taas("maker", "set", "--model", "m", "--maker", "x", exit_code=1).output
    assert told("books", "close", "--month", "2023-10", "--yes")["statements"] == []
    assert told("books", "show", "2023-10")["month"] == "2023-10"
    assert told("books", "balances")["data"] == []
    assert told("maker", "statement", "--maker", "lab.example", "--month", "2023-10")["data"] == []


@pytest.mark.usefixtures("terminal")
def test_a_file_of_prices_is_tried_on_recorded_requests_and_set_all_or_none(
    taas: Taas, told: Callable[..., Any], migrated_database_url: str, tmp_path: Path
) -> None:
    tenant = told("tenant", "create", "acme")["tenant"]
    yesterday_ms = int(time.time() * 1000) - 24 * HOUR_MS
    for model in ("m", "n"):
        told("model", "add", model, "--context", "4096")
    told("price", "set", "--model", "m", "--input", "1", "--output", "2", "--from", "2023-01-01")
    used = [
        event("req_1", (10**6, 0, 10**6), tenant=tenant, model="m", started_ms=yesterday_ms),
        event(
            "req_2", (10**6, 0, 10**6), tenant=tenant, model="m", class_=CapacityClass.FLEX,
            line="batch_1/1", started_ms=yesterday_ms,
        ),
    ]  # fmt: skip
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        record_events(connection, [ReceivedEvent.read(each.to_json()) for each in used])
    engine.dispose()
    file = tmp_path / "prices.yaml"
    file.write_text(
        "prices:\n"
        "  - {model: m, input: 2, output: 1.5}\n"
        "  - {model: m, class: batch, discount: 50, from: 2999-01-01}\n"
        "  - {model: n, free: true}\n"
    )
    trial = told("price", "load", str(file), "--dry-run")
    assert [(each["class"], each["before"], each["after"]) for each in trial["lines"]] == [
        ("batch", "3.00", "1.75"), ("on_demand", "3.00", "3.50"),
    ]  # fmt: skip
    assert len(told("price", "list")["data"]) == 1
    shown = taas("price", "load", str(file), "--yes").output
    assert "+16.67 %" in shown
    assert re.search("m +all +output +2.00 +1.50", shown)
    assert len(told("price", "list")["data"]) == 4
    file.write_text('[{"model": "m", "input": "3", "output": "3"}, {"model": "gone", "free": "true"}]')
    assert "gone" in taas("price", "load", str(file), "--yes", exit_code=1).output
    assert len(told("price", "list")["data"]) == 4
    # A slip by a thousand times, at a model without requests.
    slip, rise = {"model": "n", "input": "3", "output": "3"}, {"model": "m", "input": "2", "output": "2"}
    file.write_text(json.dumps([slip, rise]))
    load = ["price", "load", str(file)]
    said = CliRunner().invoke(main, load, input="n\n").output
    assert re.search("n +all +input +0.00 +3.00 +over 10 times", said)
    assert re.search("m +all +output +1.50 +2.00 *\n", said)
    assert "set 2 prices, 1 of which changes by more than 10 times?" in said
    assert len(told("price", "list")["data"]) == 4
    assert "2 prices set" in CliRunner().invoke(main, load, input="y\n").output
    for wrong in ("x", "prices: 3", "{", "- 3"):
        file.write_text(wrong)
        assert "prices.yaml" in taas("price", "load", str(file), "--dry-run", exit_code=1).output
