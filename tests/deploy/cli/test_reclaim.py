"""`taas reclaim`, `taas release` and `taas plan`, as an operator types them, through a live admin API."""

import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, insert

from billing.schema.capacity import calibration
from deploy.cli.main import main
from deploy.cli.plan import chart
from deploy.cli.reclaim import print_plan
from tests.deploy.cli.conftest import Taas

Told = Callable[..., Any]
POOL = "org/llama"


@pytest.fixture
def shop(taas: Taas, told: Told, migrated_database_url: str) -> None:
    """The tenant acme, and a measured pool of two instances that are there, 1,000 units per second each."""
    told("tenant", "create", "acme")
    told("model", "add", POOL, "--context", "4096")
    told("price", "set", "--model", POOL, "--free")
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        connection.execute(
            insert(calibration).values(
                calibration_id="cal_1", pool=POOL, model=POOL, weights_version=1, capacity_mu_s=1_000_000,
                sequences=16, tpot_target_ms=50, ttft_target_ms=1000, hardware="cpu", engine_version="0.32",
                error_permille=30, report={},
            )
        )  # fmt: skip
    engine.dispose()
    told("pool", "set", POOL, "--instances", "2", "--headroom", "0%")
    for number in (1, 2):
        told(
            "instance",
            "add",
            "--model",
            POOL,
            "--url",
            f"http://127.0.0.1:{number}",
            "--instance",
            f"i{number}",
            "--force",
        )


def statuses(told: Told) -> dict[str, str]:
    return {each["instance"]: each["status"] for each in told("instance", "list")["data"]}


@pytest.mark.usefixtures("terminal")
def test_it_shows_what_it_does_asks_does_it_and_gives_back(taas: Taas, told: Told, shop: None) -> None:
    said = "reclaim", POOL, "--instances", "1", "--for", "research", "--by", "+5min"
    asked = CliRunner().invoke(main, said, input="n\n")
    assert asked.exit_code == 1
    for word in ("i1", "0 flex, 0 on-demand, 0 reserved", "1,000", "do it?"):
        assert word in asked.output
    assert told("reclaim")["data"] == []
    shown = taas(*said, "--yes").stdout
    (made,) = told("reclaim", POOL)["data"]
    assert (made["state"], made["chosen"], made["use"]) == ("draining", ["i1"], "research")
    assert f"{made['reclaim']} is draining" in shown
    left = datetime.fromisoformat(made["by"]) - datetime.now(UTC)
    assert timedelta(minutes=4) < left <= timedelta(minutes=5)
    assert statuses(told) == {"i1": "draining", "i2": "ready"}
    # What drains is not for sale any more, and not said to be.
    free = told("pool", "show", POOL)
    assert (free["taken"], free["capacity"], free["free"]) == (1, "1000", "1000")
    assert (
        "2 machines, and from then on 1 of them: others"
        in taas(*said[:3], "2", *said[4:], exit_code=1).stderr
    )
    assert "1 for research" in taas("reclaim", "--show", made["reclaim"]).stdout
    assert "is released: i1" in taas("release", made["reclaim"]).stdout
    assert statuses(told) == {"i1": "ready", "i2": "ready"}
    assert "released already" in taas("release", made["reclaim"], exit_code=1).stderr


def test_a_contract_stands_in_its_way_until_it_is_broken_knowingly(
    taas: Taas, told: Told, shop: None
) -> None:
    told(
        "contract", "sign", "--yes", "--tenant", "acme", "--pool", POOL, "--units", "1500", "--from",
        "2199-01-01", "--until", "1y", "--notice-days", "30",
    )  # fmt: skip
    said = "reclaim", POOL, "--instances", "1", "--for", "recsys", "--by", "30d"
    refused = taas(*said, "--yes", exit_code=1)
    assert "from 2199-01-01T00:00:00Z until 2200-01-01T00:00:00Z by 500 units per second" in refused.stderr
    # What it is left with is said beside the contract, and that it holds is not.
    assert "1,500 → 1,000" in refused.stdout
    assert "cut, most from 2199-01-01T00:00:00Z" in refused.stdout
    assert "holds" not in refused.stdout
    assert told("reclaim")["data"] == []
    refused = taas(*said, "--dry-run", "--json", exit_code=1)
    assert json.loads(refused.stdout)["plan"]["refusal"] in refused.stderr
    assert "BROKEN" in taas(*said, "--break", "--dry-run").stdout
    assert told("reclaim")["data"] == []
    (cut,) = told(*said, "--break", "--dry-run")["plan"]["contracts"]
    assert {name: cut[name] for name in ("holds", "run_out", "units", "units_then", "least_from")} == {
        "holds": False, "run_out": False, "units": "1500", "units_then": "1000",
        "least_from": "2199-01-01T00:00:00Z",
    }  # fmt: skip
    made = told(*said, "--break", "--yes")
    assert (made["state"], made["break"]) == ("planned", True)
    assert told("release", made["reclaim"])["state"] == "cancelled"


def test_each_contract_is_shown_with_what_becomes_of_it(taas: Taas, told: Told, shop: None) -> None:
    said = ("contract", "sign", "--yes", "--pool", POOL, "--notice-days", "30")
    told("tenant", "create", "bolt")
    told(*said, "--tenant", "acme", "--units", "400", "--until", "10d", "--notice-days", "0")
    told(*said, "--tenant", "bolt", "--units", "900", "--until", "2y")
    lines = {
        line.split()[1]: line for line in taas("reclaim", POOL, "--instances", "1", "--for", "idle", "--by",
        "60d", "--dry-run").stdout.splitlines()
        if line.startswith("con_")
    }  # fmt: skip
    assert "400  " in lines["acme"]
    assert lines["acme"].endswith("has run out")
    assert "900  " in lines["bolt"]
    assert lines["bolt"].endswith("holds")


class Answer(io.BytesIO):
    """What is typed at the question; something happens just before."""

    def __init__(self, typed: bytes, first: Callable[[], object]) -> None:
        super().__init__(typed)
        self._first = first

    def read1(self, size: int | None = -1, /) -> bytes:
        self._first()
        return super().read1(size)


@pytest.mark.usefixtures("terminal")
def test_what_is_not_as_it_was_shown_is_not_done(taas: Taas, told: Told, shop: None) -> None:
    said = "reclaim", POOL, "--instances", "1", "--for", "recsys", "--by", "now"
    goes = Answer(b"y\n", lambda: told("instance", "remove", "i1"))
    asked = CliRunner().invoke(main, said, input=goes)
    assert asked.exit_code == 1
    assert "Not there to be taken any more: i1." in asked.stderr
    before, after = asked.stdout.split("what it would do now:")
    assert "instances that leave" in before
    assert "instances that leave" not in after
    assert told("reclaim")["data"] == []
    comes = Answer(b"y\n", lambda: told("contract", "sign", "--yes", "--tenant", "acme", "--pool", POOL,
    "--units", "1500", "--until", "1y",
                                        "--notice-days", "0"))  # fmt: skip
    asked = CliRunner().invoke(main, [*said, "--break"], input=comes)
    assert asked.exit_code == 1
    assert "more than was shown" in asked.stderr
    assert "BROKEN" in asked.stdout.split("what it would do now:")[1]
    assert told("reclaim")["data"] == []


def a_plan(**changes: Any) -> dict[str, Any]:
    """What a reclaim would do: nothing to anybody, but for what is said."""
    return {
        "pool": "p", "instances": 1, "use": "idle", "by": "noon", "drain_from": "noon", "drains_now": False,
        "not_running": 0,
        "others": {"units_before": "2", "units_after": "1"}, "open": {"flex": 20, "on_demand": 3,
        "reserved": 0},
        "leaving": [], "left": [], "contracts": [], "streams": [], "broken": [], **changes,
    }  # fmt: skip


def test_more_streams_than_are_shown_are_counted_below_them(capsys: pytest.CaptureFixture[str]) -> None:
    stream = {
        "request": "req_1",
        "tenant_name": "acme",
        "class": "flex",
        "instance": "i1",
        "started": "then",
        "end_by": "noon",
    }
    streams = [{**stream, "resumes": number == 0} for number in range(23)]
    print_plan(a_plan(streams=streams, broken=[{"from": "noon", "until": None, "units": "1"}]))
    shown = capsys.readouterr().out
    assert shown.count("resumes elsewhere") == 1
    assert shown.index("and 3 more are open") < shown.index("BROKEN")


def test_units_are_rounded_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    left = {
        "from": "noon",
        "until": None,
        "machines": 1,
        "capacity": "23043.437",
        "reserved": "1500.125",
        "free": "0.333",
        "short": "0",
    }
    cut = {"contract": "con_1", "tenant_name": "acme", "ends": "then", "run_out": False, "holds": False,
    "least_from": "noon",
           "units": "1234.567", "units_then": "12.346"}  # fmt: skip
    others = {"units_before": "5120.763", "units_after": "0.125"}
    print_plan(
        a_plan(
            left=[left],
            contracts=[cut],
            others=others,
            broken=[{"from": "noon", "until": None, "units": "1222.221"}],
        )
    )
    shown = capsys.readouterr().out
    for figure in ("23,043", "1,500", "0.33", "1,235 → 12.35", "5,121 → 0.12", "1,222"):
        assert figure in shown, shown


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ((POOL, "--instances", "1"), "missing: --for, --by."),
        ((POOL, "--break"), "missing: --instances, --for, --by."),
        (("--by", "now", "--for", "idle"), "missing: POOL, --instances."),
        ((POOL, "--instances", "0", "--for", "idle", "--by", "now"), "instances"),
        ((POOL, "--instances", "1", "--for", "games", "--by", "now"), "games"),
        ((POOL, "--instances", "1", "--for", "idle", "--by", "soon"), "no moment"),
        ((POOL, "--instances", "1", "--for", "idle", "--by", "now", "--json"), "nobody can answer"),
    ],
)
def test_wrong_usage_says_what_to_give(taas: Taas, args: tuple[str, ...], word: str) -> None:
    assert word in taas("reclaim", *args, exit_code=2).stderr


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ((POOL, "--instances", "3", "--for", "idle", "--by", "now"), "2 machines"),
        ((POOL, "--instances", "1", "--for", "idle", "--by", "2020-01-01"), "past"),
        (("nowhere", "--instances", "1", "--for", "idle", "--by", "now"), "nowhere"),
        (("--show", "rec_0"), "rec_0"),
    ],
)
def test_what_cannot_be_is_refused(taas: Taas, shop: None, args: tuple[str, ...], word: str) -> None:
    assert word in taas("reclaim", *args, exit_code=1).stderr


def test_the_plan_shows_uses_and_what_is_signed_by_quarter(taas: Taas, told: Told, shop: None) -> None:
    told(
        "contract", "sign", "--yes", "--tenant", "acme", "--pool", POOL, "--units", "400", "--ramp",
        "6mo:800", "--until", "2y", "--notice-days", "30",
    )  # fmt: skip
    told("reclaim", POOL, "--instances", "1", "--for", "research", "--by", "200d", "--yes")
    answer = told("plan", "--quarters", "6")
    (pool,) = answer["data"]
    periods = pool["periods"]
    assert len({each["quarter"] for each in periods}) == 6
    assert (periods[0]["machines"], periods[0]["signed"], periods[0]["free"]) == (
        {"external": 2},
        "400",
        "1600",
    )
    assert (periods[-1]["machines"], periods[-1]["signed"], periods[-1]["free"]) == (
        {"external": 1, "research": 1}, "800", "200",
    )  # fmt: skip
    drawn = taas("plan", "--pool", POOL, "--quarters", "6").stdout
    assert re.search("█+·+ +20% sold", click.unstyle(drawn)), drawn
    assert "80% sold" in drawn
    assert "nowhere" in taas("plan", "--pool", "nowhere", exit_code=1).stderr


def test_a_bar_shows_what_is_sold_of_what_may_be() -> None:
    period = {"quarter": "2027-Q1", "from": "2027-01-01T00:00:00Z"}
    half = period | {"capacity": "1000", "free": "500", "short": "0"}
    broken = period | {"capacity": "500", "free": "0", "short": "500"}
    lines = [click.unstyle(line) for line in chart([half, broken])]
    bars = [line.split(" ")[3] for line in lines]
    assert len(bars[0]) == len(bars[1])
    assert bars[0].count(bars[0][0]) == bars[1].count(bars[1][0]) == len(bars[0]) // 2
    assert len({bars[0][0], bars[0][-1], bars[1][-1]}) == 3, "sold, free and short look different"
    assert "50% sold" in lines[0]
    assert "200% sold" in lines[1]
