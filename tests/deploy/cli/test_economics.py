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
