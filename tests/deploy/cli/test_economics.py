"""`taas machine` and `taas economics`, as an operator types them, through a live admin API."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from tests.billing.contracts.selling import POOL, furnish
from tests.deploy.cli.conftest import Taas

Told = Callable[..., Any]
PERIOD = ("--from", "2026-08-01", "--until", "2026-10-01")


@pytest.fixture(autouse=True)
def pool(migrated_database_url: str) -> None:
    """Two machines of 1,000 units/s each, since ever."""
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        furnish(connection)
    engine.dispose()


def test_machines_are_told_and_reported_as_table_json_csv_and_charts(
    taas: Taas, told: Told, tmp_path: Path
) -> None:
    """August and September have 744 + 720 hours: two machines at 1.50 USD cost 2,232 and 2,160 USD."""
    assert "nothing is known" in taas("machine", "list").stdout
    taas("machine", "set", POOL, exit_code=2)
    made = told(
        "machine", "set", POOL, "--usd-per-hour", "1.5", "--kw", "10.2", "--overhead", "1.25", "--gpus", "8",
        "--from", "2026-01-01",
    )  # fmt: skip
    assert (made["usd_per_hour"], made["overhead"], made["use"]) == ("1.50", "1.25", None)
    assert told("machine", "list", "--pool", POOL)["data"] == [made]
    report = told("economics", "--by", "quarter,use", *PERIOD)
    assert [(line["quarter"], line["use"], line["cost"]) for line in report["lines"]] == [
        ("2026-Q3", "external", "4392.00")
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(taas("economics", "--by", "month,use", *PERIOD, "--csv").stdout)))
    assert [(row["month"], row["cost"], row["unit_hours.idle"]) for row in rows] == [
        ("2026-08", "2232.00", "1488000"), ("2026-09", "2160.00", "1440000")
    ]  # fmt: skip
    assert rows[0]["commitment.total_commitment"] == ""
    table = taas("economics", "--by", "month,use", *PERIOD)
    assert "-4,392" in table.stdout
    assert "are not known" not in table.stderr
    file = tmp_path / "economics.html"
    taas("economics", "--by", "month,use", *PERIOD, "--html", str(file))
    text = file.read_text()
    assert not re.search(r"https?://|<script|<link|url\(|@import", text)
    charts = re.findall(r"<svg.*?</svg>", text)
    assert len(charts) == 4
    bars = re.findall(r'<rect [^>]*height="([0-9.]+)"[^>]*><title>([^<]*)</title>', charts[0])
    # Revenue, cost and margin of two months; the greater cost has the higher bar.
    assert [title for _, title in bars] == [
        "revenue: 0.00", "cost: 2,232.00", "margin: -2,232.00",
        "revenue: 0.00", "cost: 2,160.00", "margin: -2,160.00",
    ]  # fmt: skip
    heights = [float(height) for height, _ in bars]
    assert heights[1] / heights[4] == pytest.approx(744 / 720, abs=0.01)
    assert "2026-08" in charts[0]
    taas("economics", "--csv", "--json", exit_code=2)


def test_what_is_not_known_is_said(taas: Taas, told: Told) -> None:
    table = taas("economics", *PERIOD)
    assert "2,928 machine-hours are not in the cost" in table.stderr
    (line,) = told("economics", *PERIOD)["lines"]
    assert (line["cost"], line["margin"], line["per_kwh"]["cost"]) == (None, None, None)
    assert "nothing was used" in taas("economics", "--until", "1970-02-01", "--from", "1970-02-01").stdout


def test_what_a_reclaim_a_notice_and_other_prices_would_cost(taas: Taas, told: Told, tmp_path: Path) -> None:
    """Of two machines at 1.50 USD an hour; a contract of 1,500 units/s with 90 days' notice."""
    told("price", "set", "--model", POOL, "--free")
    told("machine", "set", POOL, "--usd-per-hour", "1.5", "--from", "2026-01-01")
    signed = told(
        "contract", "sign", "--tenant", "acme", "--pool", POOL, "--units", "1500", "--from", "now",
        "--until", "3y", "--notice-days", "90", "--yes",
    )["contract"]  # fmt: skip
    told("contract", "price", signed, "--unit-hour", "0.01")
    order = ("reclaim", POOL, "--instances", "1", "--for", "research", "--by", "1d")
    preview = told(*order, "--break", "--what-if")
    assert preview["reclaim"] is None
    money = preview["money"]
    assert len(money["by_quarter"]) == 8
    # The machine's hours until the end of the plan, and half of 1,000 units/s short in each.
    hours = float(money["cost_moved"]) / 1.5
    assert float(money["short_unit_hours"]) == pytest.approx(hours * 500, rel=1e-6)
    assert [each["contract"] for each in money["contracts"]] == [signed]
    # Nobody asked for anything; all that is short is given back.
    assert money["lost_revenue"] == "0.00"
    assert float(money["credits"]) == pytest.approx(hours * 500 * 0.01, rel=1e-6)
    shown = taas(*order, "--break", "--what-if").stdout
    assert "what it costs until" in shown
    assert "BROKEN" in shown
    assert "It would break what is signed" in taas(*order, "--what-if", exit_code=1).output
    assert told("reclaim")["data"] == []

    (pool,) = told("economics", "plan")["data"]
    first, *_, last = pool["take_back"]
    assert (first["without_notice"]["machines"], first["with_notice"]["machines"]) == (0, 0)
    assert (last["with_notice"]["machines"], last["with_notice"]["notices"]) == (2, [signed])
    # From the 90th day on to the end of the plan the contract's capacity is not paid for.
    assert float(last["with_notice"]["lost_revenue"]) > 300 * 24 * 1500 * 0.01
    # 90 days of 24 hours.
    assert float(pool["contracts"][0]["assured_unit_hours"]) == pytest.approx(90 * 24 * 1500, rel=1e-4)
    assert float(pool["contracts"][0]["assured_revenue"]) == pytest.approx(90 * 24 * 15, rel=1e-4)
    assert "can be taken back" in taas("economics", "plan", "--pool", POOL).stdout
    file = tmp_path / "plan.html"
    taas("economics", "plan", "--html", str(file))
    both = sum(each["with_notice"]["machines"] == 2 for each in pool["take_back"])
    assert file.read_text().count("with notice now: 2.00") == both > 5

    notice = told("contract", "notice", signed, "--by", "operator", "--what-if")
    lost = [each["difference"]["unit_hours"]["sold"] for each in notice["by_quarter"]]
    assert (lost[0], float(lost[3]) < 0) == ("0", True)
    assert told("contract", "show", signed)["state"] != "notice_given"
    moved = taas(
        "economics", "what-if", "--price", "-10%", "--work", "+20%",
        "--move", f"{POOL}:1:own:recsys@90d", "--notice", f"{signed}:tenant",
    ).stdout  # fmt: skip
    assert "recsys" in moved
    taas("economics", "what-if", "--move", f"{POOL}:1:own:elsewhere", exit_code=2)
    taas("economics", "what-if", "--move", f"{POOL}:3:own:recsys", exit_code=1)
    told("machine", "set", POOL, "--for", "research")
    assert told("plan", "--pool", POOL)["data"][0]["own_use"] == "research"


def test_the_plan_of_a_pool_without_machines_says_how_to_tell_of_them(taas: Taas) -> None:
    taas("pool", "set", POOL, "--instances", "0")
    shown = taas("economics", "plan")
    assert f"{POOL}: 0 machines\n" in shown.stdout
    assert f"`taas pool set {POOL} --instances N`" in shown.stderr
    taas("pool", "set", POOL, "--instances", "1")
    shown = taas("economics", "plan")
    assert f"{POOL}: 1 machine\n" in shown.stdout
    assert not shown.stderr
