"""`taas contract` and `taas pool set`, as an operator types them, through a live admin API."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import click
import pytest
from sqlalchemy import create_engine

from billing.contracts import lifecycle, store
from billing.contracts.clock import advance
from billing.contracts.terms import Step, Terms
from deploy.cli.contract import stood_before
from deploy.cli.contract_terms import PART, times
from deploy.cli.moments import resolve, rfc3339
from tests.deploy.cli.conftest import Taas, run

Told = Callable[..., Any]
NOW = datetime(2028, 1, 31, 12, tzinfo=UTC)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_three_years_that_both_sides_can_end_within_90_days_is_one_line(taas: Taas, told: Told, shop: None):
    line = (
        "contract sign --yes --tenant acme --pool org/llama --units 500 --from now --until 3y "
        "--notice-days 90"
    )
    signed = told(*line.split())
    assert (signed["state"], signed["overflow"]) == ("signed", "reject")
    assert signed["steps"][0]["units"] == "500"
    assert timedelta(days=1095) <= moment(signed["until"]) - moment(signed["from"]) + timedelta(seconds=60)
    ended = told("contract", "notice", "--yes", signed["contract"], "--by", "operator")
    left = moment(ended["ends"]) - moment(ended["notice_given"])
    assert (ended["state"], left) == ("notice_given", timedelta(days=90))
    assert [each["change"] for each in told("contract", "history", signed["contract"])["data"]] == [
        "draft", "signed", "notice_given",
    ]  # fmt: skip


def test_all_terms_pass_through_and_come_back(taas: Taas, told: Told, shop: None):
    signed = told(
        "contract", "sign", "--yes", "--tenant", "acme", "--pool", "org/llama", "--units", "100.5", "--from",
        "2199-01-01", "--ramp", "2199-07-01T00:00:00Z:200", "--ramp", "12mo:400", "--until", "3y",
        "--min-term", "12mo", "--notice-days", "90", "--operator-notice-days", "180", "--overflow", "spill",
        "--spill-units", "50", "--headroom", "15%", "--price-reference", "PO 7",
    )  # fmt: skip
    assert [(step["from"][:10], step["units"]) for step in signed["steps"]] == [
        ("2199-01-01", "100.5"), ("2199-07-01", "200"), ("2200-01-01", "400"),
    ]  # fmt: skip
    assert (signed["until"][:10], signed["minimum_until"][:10]) == ("2202-01-01", "2200-01-01")
    assert (signed["tenant_notice_days"], signed["operator_notice_days"]) == (90, 180)
    assert (signed["spill_units"], signed["headroom"], signed["price_reference"]) == ("50", "0.15", "PO 7")
    amended = told("contract", "amend", "--yes", signed["contract"], "--units", "300", "--from", "2199-03-01")
    assert [step["units"] for step in amended["steps"]] == ["100.5", "300"]
    longer = told("contract", "amend", "--yes", signed["contract"], "--until", "2205-01-01")
    assert longer["ends"][:10] == "2205-01-01"
    assert longer.pop("warnings") == []
    assert told("contract", "show", signed["contract"]) == longer
    assert told("contract", "list", "--tenant", "acme", "--state", "signed")["data"] == [longer]
    assert signed["contract"] in taas("contract", "list").stdout
    shown = taas("contract", "show", signed["contract"]).stdout
    assert "spill, at most 50 units per second" in shown
    assert re.search(r"2199-03-01 00:00\s+300", shown)
    assert "amended" in taas("contract", "history", signed["contract"]).stdout


def lasting(begins: str, until: str) -> list[str]:
    """Words of a small contract of acme's."""
    what = ["--tenant", "acme", "--pool", "org/llama", "--units", "5", "--notice-days", "7"]
    return [*what, "--from", begins, "--until", until]


def test_a_draft_is_signed_by_its_id(taas: Taas, told: Told, shop: None):
    terms = lasting("1d", "90d")
    drafts = [told("contract", "draft", *terms), told("contract", "sign", "--yes", *terms, "--draft")]
    assert [each["state"] for each in drafts] == ["draft", "draft"]
    assert told("contract", "sign", "--yes", drafts[0]["contract"])["state"] == "signed"
    assert "amend that one" in taas("contract", "sign", "--yes", drafts[1]["contract"], exit_code=1).stderr


def test_a_draft_is_withdrawn_and_a_signed_one_is_not(taas: Taas, told: Told, shop: None):
    terms = [
        "--tenant",
        "acme",
        "--pool",
        "org/llama",
        "--units",
        "5",
        "--until",
        "90d",
        "--notice-days",
        "7",
    ]
    drafted = told("contract", "draft", *terms)["contract"]
    assert "will not be signed" in taas("contract", "withdraw", drafted).stdout
    assert told("contract", "show", drafted)["state"] == "ended"
    assert "has ended" in taas("contract", "sign", "--yes", drafted, exit_code=1).stderr
    signed = told("contract", "sign", "--yes", *terms)["contract"]
    assert "notice" in taas("contract", "withdraw", signed, exit_code=1).stderr


def test_overflow_cap_and_notice_are_amended_and_shown_with_what_is_planned(
    taas: Taas, told: Told, shop: None
):
    terms = [
        "--tenant",
        "acme",
        "--pool",
        "org/llama",
        "--units",
        "5",
        "--until",
        "2100-01-01",
        "--notice-days",
        "7",
    ]
    signed = told("contract", "sign", "--yes", *terms)["contract"]
    now = told("contract", "amend", "--yes", signed, "--overflow", "spill", "--spill-units", "12.5")
    assert (now["overflow"], now["spill_units"], now["planned"]) == ("spill", "12.5", [])
    taas("contract", "amend", "--yes", signed, "--spill-units", "none", "--from", "2090-01-01")
    taas(
        "contract",
        "amend",
        "--yes",
        signed,
        "--overflow",
        "queue",
        "--tenant-notice-days",
        "30",
        "--from",
        "2091-01-01",
    )
    shown = taas("contract", "show", signed).stdout
    assert (
        "spill, at most 12.5 units per second; from 2090-01-01 00:00 spill; from 2091-01-01 00:00 queue"
    ) in shown
    assert "7 days by the tenant, 7 by the operator; from 2091-01-01 00:00 30 days by the tenant, 7" in shown
    history = taas("contract", "history", signed).stdout
    assert "at most 12.5 units per second; from 2090" in history
    assert "30 days by the tenant" in history
    told("contract", "notice", "--yes", signed, "--by", "tenant")
    assert (
        "Notice has been given"
        in taas("contract", "amend", "--yes", signed, "--notice-days", "1", exit_code=1).stderr
    )


def test_amending_names_the_steps_that_fall_away(taas: Taas, told: Told, shop: None):
    terms = lasting("2100-01-01", "9y")
    ramp = ["--ramp", "2101-01-01:6", "--ramp", "2102-01-01:7", "--ramp", "2103-01-01:8"]
    signed = told("contract", "sign", "--yes", *terms, *ramp)["contract"]
    assert "note" not in taas("contract", "amend", "--yes", signed, "--overflow", "queue").stderr
    said = taas("contract", "amend", "--yes", signed, "--units", "7", "--from", "2102-01-01").stderr
    assert said == "note: no step of its ramp any more: 8 units per second from 2103-01-01T00:00:00Z\n"
    said = taas("contract", "amend", "--yes", signed, "--units", "9", "--from", "2100-02-01").stderr
    assert (
        "6 units per second from 2101-01-01T00:00:00Z, 7 units per second from 2102-01-01T00:00:00Z" in said
    )


def test_signing_says_what_of_the_draft_had_passed(
    taas: Taas, told: Told, shop: None, migrated_database_url: str
):
    (tenant,) = told("tenant", "list")["data"]
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        then_ms = store.now_ms(connection) - 60_000
        steps = (Step(then_ms, 5000), Step(then_ms + 30_000, 6000), Step(then_ms + 9_000_000_000, 7000))
        terms = Terms(
            tenant_id=tenant["tenant"],
            pool="org/llama",
            steps=steps,
            starts_ms=then_ms,
            ends_ms=then_ms + 30_000_000_000,
            minimum_until_ms=then_ms,
            tenant_notice_days=7,
            operator_notice_days=7,
        )
        drafted = lifecycle.draft(connection, terms, now_ms=then_ms).contract_id
    before = told("contract", "show", drafted)
    result = taas("contract", "sign", "--yes", drafted)
    shown = told("contract", "show", drafted)
    assert (
        f"note: it starts at {shown['from']}, when it was signed: its start at {before['from']} had passed"
        in result.stderr
    )
    assert (
        f"note: no step of its ramp any more: 6 units per second from {before['steps'][1]['from']}\n"
        in result.stderr
    )
    assert [step["units"] for step in shown["steps"]] == ["6", "7"]
    # It is said though the clock has made it active meanwhile.
    with engine.begin() as connection:
        advance(connection, store.now_ms(connection))
    entries = told("contract", "history", drafted)["data"]
    assert [entry["change"] for entry in entries] == ["draft", "signed", "active"]
    assert stood_before("signed", entries)["from"] == before["from"]
    engine.dispose()


@pytest.mark.parametrize(
    "args",
    [
        ["contract", "sign"], ["contract", "sign", "--units", "5"], ["contract", "sign", "con_1", "--units",
        "5"],
        ["contract", "sign", "--tenant", "a", "--pool", "p", "--units", "5", "--until", "1y"],
        ["contract", "sign", "--tenant", "a", "--pool", "p", "--units", "5", "--until", "eventually",
        "--notice-days", "1"],
        ["contract", "sign", "--tenant", "a", "--pool", "p", "--units", "5", "--until", "999999y",
        "--notice-days", "1"],
        ["contract", "sign", "--ramp", "200"], ["contract", "sign", "--headroom", "100%"], ["contract",
        "sign", "--headroom", "much"],
        ["contract", "sign", "--overflow", "explode"], ["contract", "amend", "con_1"], ["contract", "notice",
        "con_1"],
        ["contract", "amend", "con_1", "--until", "1y", "--from", "now"], ["contract", "amend", "con_1",
        "--overflow", "explode"],
        ["contract", "amend", "con_1", "--notice-days", "many"], ["contract", "withdraw"], ["contract",
        "quote"], ["pool", "set", "p"],
        ["pool", "set", "p", "--instances", "-1"],
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_2(args: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAAS_ADMIN_KEY", "none")
    assert "Usage:" in run(*args, exit_code=2).stderr


NO_NUMBERS = [
    "nan",
    "NaN%",
    "snan",
    "inf",
    "-inf",
    "Infinity%",
    "1e400",
    "1e400%",
    "1e999999999999999999999",
    "-1",
    "1e-999999999",
    "",
    "%",
    "ten",
]


@pytest.mark.parametrize("text", NO_NUMBERS)
@pytest.mark.parametrize(
    "words", [["contract", "draft"], ["contract", "quote", "--pool", "p"], ["pool", "set", "p"]], ids=" ".join
)
def test_what_is_no_part_is_wrong_usage(words: list[str], text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAAS_ADMIN_KEY", "none")
    assert "--headroom" in run(*words, "--headroom", text, exit_code=2).stderr


@pytest.mark.parametrize(
    "text", [text for text in NO_NUMBERS if text != "1e-999999999"] + ["0", "-0", "none"]
)
@pytest.mark.parametrize(
    "words",
    [
        ["contract", "draft", "--units", "{}"], ["contract", "draft", "--spill-units", "{}"], ["contract",
        "draft", "--ramp", "1y:{}"],
        ["contract", "amend", "con_1", "--units", "{}"], ["contract", "quote", "--pool", "p", "--units",
        "{}"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_no_rate_is_wrong_usage(words: list[str], text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAAS_ADMIN_KEY", "none")
    assert words[-2] in run(*(word.format(text) for word in words), exit_code=2).stderr


@pytest.mark.parametrize(
    ("text", "meant"), [("-0", "0"), ("-0%", "0"), ("12.5%", "0.125"), ("1e-1", "0.1"), ("0e-999999999", "0")]
)
def test_a_part_is_read_as_it_is_meant(text: str, meant: str):
    assert Decimal(PART.convert(text, None, None)) == Decimal(meant)
    assert not PART.convert(text, None, None).startswith("-")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("now", "2028-01-31T12:00:00.000Z"), ("90d", "2028-04-30T12:00:00.000Z"), ("1mo",
        "2028-02-29T12:00:00.000Z"),
        ("12mo", "2029-01-31T12:00:00.000Z"), ("3y", "2031-01-31T12:00:00.000Z"), ("2w",
        "2028-02-14T12:00:00.000Z"),
        ("36h", "2028-02-02T00:00:00.000Z"), ("2030-05-01", "2030-05-01T00:00:00.000Z"),
        ("2030-05-01T02:00:00+02:00", "2030-05-01T00:00:00.000Z"), ("2030-05-01T00:00:00Z",
        "2030-05-01T00:00:00.000Z"),
    ],
)  # fmt: skip
def test_moments_are_read_by_the_calendar(text: str, meant: str):
    assert rfc3339(resolve(text, now=NOW, anchor=NOW, option="--until")) == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2mo", "2027-11-30T12:00:00.000Z"), ("2y", "2026-01-31T12:00:00.000Z"),
        ("+1mo", "2028-02-29T12:00:00.000Z"), ("36h", "2028-01-30T00:00:00.000Z"),
    ],
)  # fmt: skip
def test_what_has_been_is_counted_back_by_the_calendar(text: str, meant: str):
    assert rfc3339(resolve(text, now=NOW, anchor=NOW, option="--from", counts_back=True)) == meant


def test_spans_count_by_the_calendar_in_utc_wherever_the_start_was_typed():
    term = times("2028-03-01T00:30:00+02:00", "1mo")
    assert (term.starts, term.until) == ("2028-02-29T22:30:00.000Z", "2028-03-29T22:30:00.000Z")


@pytest.mark.parametrize("text", ["", "3", "y", "-3y", "1.5y", "3 y", "9999999d", "2030-13-01", "tomorrow"])
def test_what_is_no_moment_is_said_to_be_none(text: str):
    with pytest.raises(click.BadParameter, match="is no moment"):
        resolve(text, now=NOW, anchor=NOW, option="--until")


@pytest.mark.parametrize(
    "text",
    [
        "9000y",
        "+9000y",
        "999999mo",
        "999999w",
        "7972y",
        "9999-12-31T23:59:59-05:00",
        "0001-01-01T00:00:00+05:00",
    ],
)
def test_a_moment_beyond_every_calendar_is_said_to_be_out_of_range(text: str):
    with pytest.raises(click.BadParameter, match="is out of range"):
        resolve(text, now=NOW, anchor=NOW, option="--until")


def test_from_now_a_year_is_a_year_and_no_minimum_term_is_none(taas: Taas, told: Told, shop: None):
    line = (
        "contract sign --yes --tenant acme --pool org/llama --units 5 --from now --until 1y --min-term "
        "0d --ramp 6mo:7 --notice-days 1"
    )
    signed = told(*line.split())
    assert signed["minimum_until"] == signed["from"]
    starts = moment(signed["from"])
    assert moment(signed["until"]) == resolve("1y", now=NOW, anchor=starts, option="--until")
    assert moment(signed["steps"][1]["from"]) == resolve("6mo", now=NOW, anchor=starts, option="--ramp")


def test_what_binds_is_asked_about_and_nobody_can_answer_through_a_pipe(taas: Taas, told: Told, shop: None):
    terms = lasting("2100-01-01", "9y")
    for words in (["sign", *terms], ["sign", *terms, "--json"]):
        assert "give --yes" in taas("contract", *words, exit_code=2).stderr
    assert told("contract", "list")["data"] == []
    signed = told("contract", "sign", "--yes", *terms)["contract"]
    before = told("contract", "show", signed)
    assert "give --yes" in taas("contract", "notice", signed, "--by", "tenant", exit_code=2).stderr
    refused = taas("contract", "amend", signed, "--units", "3", "--from", "2101-01-01", exit_code=2)
    assert "from 2101-01-01 00:00 on 3 units per second in place of 5" in refused.stdout
    assert told("contract", "show", signed) == before
    assert (
        told("contract", "amend", signed, "--units", "6", "--from", "2101-01-01")["steps"][1]["units"] == "6"
    )


def test_a_burst_is_signed_said_and_holds_more_of_the_pool(taas: Taas, told: Told, shop: None):
    terms = [
        "--tenant",
        "acme",
        "--pool",
        "org/llama",
        "--notice-days",
        "7",
        "--from",
        "2100-01-01",
        "--until",
        "1y",
    ]
    refused = taas("contract", "sign", "--yes", *terms, "--units", "200", "--burst", "10s", exit_code=1)
    assert "by 200 units per second" in refused.stderr
    signed = told("contract", "sign", "--yes", *terms, "--units", "150", "--burst", "10s")
    assert (signed["burst_seconds"], signed["units"]) == ("10", "0")
    assert "1,500 units at once (10 s of its rate)" in taas("contract", "show", signed["contract"]).stdout
    quote = told(
        "contract", "quote", "--pool", "org/llama", "--from", "2100-01-02", "--until", "1d", "--burst", "2s"
    )
    assert (quote["at_most"], quote["burst_units"]) == ("150", "300")
    assert (
        "burst: 300 units at once (1 s of the rate)"
        in taas("contract", "quote", "--pool", "org/llama", "--from", "2100-01-02", "--until", "1d").stdout
    )
    shorter = taas("contract", "amend", signed["contract"], "--burst", "1s", exit_code=2)
    assert "a burst of 1 s in place of 10 s" in shorter.stdout


def test_limits_that_could_undercut_a_contract_are_warned_of_with_both_figures(
    taas: Taas, told: Told, shop: None
):
    told("limit", "set", "--tenant", "acme", "--requests-per-minute", "60", "--units-per-minute", "10")
    terms = [
        "--tenant",
        "acme",
        "--pool",
        "org/llama",
        "--units",
        "500",
        "--notice-days",
        "7",
        "--until",
        "1y",
    ]
    signed = taas("contract", "sign", "--yes", *terms)
    assert "warning: org/llama is limited to 60 requests a minute beside 500 units a second" in signed.stderr
    lowered = taas(
        "contract", "amend", "--yes", re.findall("con_[0-9a-f]+", signed.stdout)[0], "--units", "200"
    ).stderr
    assert "warning: org/llama is limited to 60 requests a minute beside 200 units a second" in lowered
    warned = taas(
        "limit", "set", "--tenant", "acme", "--requests-per-minute", "none", "--concurrency", "2"
    ).stderr
    assert (
        "is limited to 2 requests at once beside 200 units a second: each must do 100 units a second"
        in warned
    )
    assert "warning" not in taas("limit", "set", "--tenant", "acme", "--concurrency", "none").stderr
