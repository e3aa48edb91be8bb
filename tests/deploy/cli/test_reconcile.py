"""`taas reconcile`: what a provider exports is held against the ledger, by day and model."""

import csv
import io
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import create_engine

from billing.ledger.entries import ReceivedEvent, record_events
from billing.wire.ending import Ending
from billing.wire.usage_event import UsageEvent, UsageSource
from deploy.cli.provider_export import Counted, ExportError, read_export
from tests.billing.events import event
from tests.deploy.cli.conftest import ADMIN_KEY, Taas

Told = Callable[..., Any]
DAY_S = 86_400
MIDNIGHT_S = 1_700_006_400  # 2023-11-15T00:00:00Z
OPENAI_CSV = [
    "start_time", "end_time", "start_time_iso", "end_time_iso", "project_id", "num_model_requests", "user_id",
    "api_key_id", "model", "batch", "input_tokens", "output_tokens", "input_cached_tokens",
]  # fmt: skip
ANTHROPIC_CSV = [
    "usage_date_utc", "model_version", "api_key", "workspace", "usage_type", "context_window",
    "usage_input_tokens_no_cache", "usage_input_tokens_cache_write_5m", "usage_input_tokens_cache_write_1h",
    "usage_input_tokens_cache_read", "usage_output_tokens", "web_search_count",
]  # fmt: skip


def went(kind: str, name: str, request_id: str, tokens: tuple[int, ...], day: int = 0) -> UsageEvent:
    made = event(request_id, tokens, ended_ms=(MIDNIGHT_S + day * DAY_S) * 1000 + 5, instance=f"at-{kind}")
    return replace(made, provider={"kind": kind, "model": name, "usage": {}})


@pytest.fixture
def ledger(taas: Taas, migrated_database_url: str) -> Callable[..., None]:
    engine = create_engine(migrated_database_url)

    def record(*events: UsageEvent) -> None:
        with engine.begin() as connection:
            record_events(connection, [ReceivedEvent.read(each.to_json()) for each in events])
        engine.dispose()

    return record


def openai_page(*rows: dict[str, Any], days: int = 1) -> str:
    """As `/v1/organization/usage/completions` answers; `day` of a row is its bucket."""
    buckets = [
        {
            "object": "bucket", "start_time": MIDNIGHT_S + day * DAY_S,
            "end_time": MIDNIGHT_S + (day + 1) * DAY_S,
            "results": [
                {"object": "organization.usage.completions.result", "num_model_requests": 1, "batch": None}
                | {name: value for name, value in row.items() if name != "day"}
                for row in rows if row.get("day", 0) == day
            ],
        }
        for day in range(days)
    ]  # fmt: skip
    return json.dumps({"object": "page", "data": buckets, "has_more": False, "next_page": None})


def anthropic_page(*rows: dict[str, Any]) -> str:
    """As `/v1/organizations/usage_report/messages` answers."""
    bucket = {"starting_at": "2023-11-15T00:00:00Z", "ending_at": "2023-11-16T00:00:00Z", "results": rows}
    return json.dumps({"data": [bucket], "has_more": False, "next_page": None})


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_what_agrees_ends_with_0_and_what_differs_is_named(
    taas: Taas, told: Told, ledger: Any, tmp_path: Path
):
    ledger(
        went("openai", "gpt-4.1", "a", (100, 40, 10)),
        went("openai", "gpt-4.1", "b", (50, 0, 5)),
        went("openai", "gpt-4.1", "c", (7, 0, 3), day=1),
        went("anthropic", "claude-x", "d", (9, 0, 9)),
        event("own", (99, 0, 99), ended_ms=MIDNIGHT_S * 1000),
    )
    first = {"model": "gpt-4.1-2025-04-14", "input_tokens": 150, "input_cached_tokens": 40,
             "output_tokens": 15}  # fmt: skip
    second = {"model": "gpt-4.1-2025-04-14", "input_tokens": 7, "output_tokens": 3, "day": 1}
    good = written(tmp_path / "good.json", openai_page(first, second, days=2))
    report = told("reconcile", "provider", good, "--provider", "openai")
    assert [(row["day"], row["kind"], row["billed"], row["theirs"]) for row in report["data"]] == [
        ("2023-11-15", "input", 150, 150), ("2023-11-15", "cached input", 40, 40),
        ("2023-11-15", "output", 15, 15), ("2023-11-16", "input", 7, 7), ("2023-11-16", "output", 3, 3),
    ]  # fmt: skip
    bad = written(
        tmp_path / "bad.json",
        openai_page(
            first | {"output_tokens": 17}, {"model": "o9", "input_tokens": 1, "output_tokens": 2}, days=2
        ),
    )
    shown = taas("reconcile", "provider", bad, "--provider", "openai", exit_code=1)
    # Days that are over and differ are findings until they agree.
    found = told("finding", "list", "--kind", "provider_differs")["data"]
    assert {each["said"]["message"] for each in found} == {
        "openai counted other tokens of gpt-4.1 on 2023-11-15: output 17 there, 15 here",
        "openai counted other tokens of o9 on 2023-11-15: input 1 there, 0 here; output 2 there, 0 here",
        "openai counted other tokens of gpt-4.1 on 2023-11-16: input 0 there, 7 here; output 0 there, 3 here",
    }
    audited = json.loads(taas("audit", "--full", "--json", exit_code=1).stdout)["findings"]
    assert len([each for each in audited if each["kind"] == "provider_differs"]) == 3
    taas("reconcile", "provider", good, "--provider", "openai", "--dry-run")
    assert len(told("finding", "list", "--kind", "provider_differs")["data"]) == 3
    taas("reconcile", "provider", good, "--provider", "openai")
    assert told("finding", "list", "--kind", "provider_differs")["data"] == []
    for words in (
        "2023-11-15 gpt-4.1: 2 more output tokens counted there than here",
        "2023-11-15 o9: 1 more input tokens counted there than here",
        "2023-11-16 gpt-4.1: 7 fewer input tokens counted there than here",
    ):
        assert words in shown.output


def test_absorbed_tokens_are_ours_and_untold_requests_are_named(taas: Taas, ledger: Any, tmp_path: Path):
    lost = event("left", ending=Ending.CLIENT_DISCONNECT, anomaly="usage_missing", source=UsageSource.COUNTED,
                 ended_ms=MIDNIGHT_S * 1000)  # fmt: skip
    died = event("died", (10, 0, 4), Ending.ENGINE_DIED, ended_ms=MIDNIGHT_S * 1000)
    provider = {"kind": "openai", "model": "gpt-4.1", "usage": None}
    ledger(replace(lost, provider=provider), replace(died, provider=provider))
    row = {"model": "gpt-4.1", "input_tokens": 30, "output_tokens": 4}
    export = written(tmp_path / "export.json", openai_page(row))
    shown = taas("reconcile", "provider", export, "--provider", "openai", exit_code=1)
    assert "20 more input tokens counted there than here; 1 requests told no usage" in shown.output
    assert "output tokens counted" not in shown.output


def test_anthropics_figures_exclude_what_its_cache_has_to_do_with(told: Told, ledger: Any, tmp_path: Path):
    ledger(went("anthropic", "claude-sonnet-4-5", "a", (1000, 300, 20, 200)))
    row = {
        "model": "claude-sonnet-4-5-20250929", "uncached_input_tokens": 500, "cache_read_input_tokens": 300,
        "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 20, "api_key_id": "apikey_ours",
    }  # fmt: skip
    other = row | {"api_key_id": "apikey_of_another_product"}
    page = written(tmp_path / "a.json", anthropic_page(row, other))
    report = told("reconcile", "provider", page, "--provider", "anthropic", "--key-id", "apikey_ours")
    line = ["2023-11-15", "claude-sonnet-4-5-20250929", "ours", "Default", "standard", "", "500", "200", "0",
            "300", "20", "0"]  # fmt: skip
    table = written(tmp_path / "a.csv", "\ufeff" + csv_of(ANTHROPIC_CSV, [line]))
    assert told("reconcile", "provider", table, "--provider", "anthropic")["data"] == report["data"]
    assert [(row["kind"], row["theirs"], row["difference"]) for row in report["data"]] == [
        ("input", 1000, 0), ("cached input", 300, 0), ("cache write", 200, 0), ("output", 20, 0),
    ]  # fmt: skip


def test_a_kind_that_tells_no_usage_is_not_read_as_another():
    with pytest.raises(KeyError):
        read_export(anthropic_page({"model": "m", "output_tokens": 1}), "vllm")


def test_only_some_instances_are_compared(told: Told, ledger: Any, tmp_path: Path):
    ledger(
        went("openai", "m", "a", (10, 0, 1)),
        replace(went("openai", "m", "b", (90, 0, 9)), instance="at-another-account"),
    )
    row = {"model": "m", "input_tokens": 10, "output_tokens": 1}
    page = written(tmp_path / "a.json", openai_page(row))
    assert told("reconcile", "provider", page, "--provider", "openai", "--instance", "at-openai")["data"]


def test_an_api_in_openais_form_is_asked_itself(
    told: Told, taas: Taas, ledger: Any, admin_url: str, tmp_path: Path
):
    """Ours has it, and counts what it has billed."""
    ledger(went("openai", "m1", "a", (100, 40, 10)), went("openai", "m1", "b", (7, 0, 3), day=40))
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text(ADMIN_KEY)
    asked = (
        "reconcile",
        "provider",
        "--provider",
        "openai",
        "--admin-key-file",
        str(key),
        "--url",
        admin_url,
    )
    report = told(*asked, "--from", "2023-11-15", "--until", "2024-01-01")
    assert [(row["day"], row["kind"], row["theirs"], row["difference"]) for row in report["data"]] == [
        ("2023-11-15", "input", 100, 0), ("2023-11-15", "cached input", 40, 0),
        ("2023-11-15", "output", 10, 0), ("2023-12-25", "input", 7, 0), ("2023-12-25", "output", 3, 0),
    ]  # fmt: skip
    key.write_text("adm-wrong")
    assert "HTTP 401: it needs an admin key" in taas(*asked, exit_code=1).output
    neither = taas("reconcile", "provider", "--provider", "openai", exit_code=2)
    assert "give FILE, or --admin-key-file" in neither.output


def test_anthropics_report_is_asked_page_by_page(told: Told, ledger: Any, tmp_path: Path):
    ledger(
        went("anthropic", "claude-x", "a", (10, 0, 5)), went("anthropic", "claude-x", "b", (1, 0, 2), day=1)
    )
    rows = [{"model": "claude-x-20250101", "uncached_input_tokens": 10, "output_tokens": 5},
            {"model": "claude-x-20250101", "uncached_input_tokens": 1, "output_tokens": 2}]  # fmt: skip
    seen: list[tuple[str, dict[str, list[str]], str | None]] = []

    class Report(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            seen.append((url.path, query, self.headers["x-api-key"]))
            number = int(query.get("page", ["0"])[0])
            bucket = {"starting_at": f"2023-11-{15 + number}T00:00:00Z", "results": [rows[number]]}
            page = {"data": [bucket], "has_more": number == 0, "next_page": "1" if number == 0 else None}
            content = json.dumps(page).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text("sk-ant-admin")
    with ThreadingHTTPServer(("127.0.0.1", 0), Report) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        report = told(
            "reconcile", "provider", "--provider", "anthropic", "--admin-key-file", str(key),
            "--url", f"http://127.0.0.1:{server.server_port}", "--from", "2023-11-15T12:00:00Z",
            "--until", "2023-11-16T12:00:00Z",
        )  # fmt: skip
        server.shutdown()
        thread.join()
    assert [row["difference"] for row in report["data"]] == [0, 0, 0, 0]
    path, query, shown = seen[0]
    assert (path, shown, len(seen)) == ("/v1/organizations/usage_report/messages", "sk-ant-admin", 2)
    assert query == {
        "starting_at": ["2023-11-15T00:00:00Z"], "ending_at": ["2023-11-17T00:00:00Z"],
        "bucket_width": ["1d"], "group_by[]": ["model"], "limit": ["31"],
    }  # fmt: skip


def csv_of(names: list[str], rows: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([names, *rows])
    return out.getvalue()


_rows = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from(["gpt-4.1", "gpt-4.1-2025-04-14", "o9"]), st.integers(0, 10**9),
        st.integers(0, 10**9), st.integers(0, 10**9),
    ),
    min_size=1, max_size=20,
)  # fmt: skip


@given(_rows)
def test_json_and_csv_say_the_same(rows: list[tuple[int, str, int, int, int]]) -> None:
    page = openai_page(
        *(
            {"day": day, "model": model, "input_tokens": rest + cached, "input_cached_tokens": cached,
             "output_tokens": output}
            for day, model, rest, cached, output in rows
        ),
        days=4,
    )  # fmt: skip
    lines = [
        [str(MIDNIGHT_S + day * DAY_S + 60), "", "", "", "p", "1.0", "", "k", model, "", f"{rest + cached}.0",
         str(output), str(cached)]
        for day, model, rest, cached, output in rows
    ]  # fmt: skip
    table = read_export(csv_of(OPENAI_CSV, lines), "openai").counted
    assert read_export(page, "openai").counted == table
    assert sum(each.output for each in table.values()) == sum(row[4] for row in rows)
    assert {model for _, model in table} <= {"gpt-4.1", "o9"}


@given(st.text() | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(
    inner) | st.dictionaries(st.sampled_from(["data", "results", "start_time", "model", "x"]), inner),
    max_leaves=12).map(json.dumps), st.sampled_from(["openai", "anthropic"]))  # fmt: skip
def test_whatever_the_file_is_it_is_read_or_refused(text: str, provider: str) -> None:
    with suppress(ExportError):
        read_export(text, provider)


@pytest.mark.parametrize(
    ("text", "provider", "why"),
    [
        ("", "openai", "lacks output_tokens, start_time"),
        ("{", "openai", "no JSON"),
        ('{"data": [], "has_more": true}', "openai", "only some pages"),
        ('{"data": []}', "openai", "covers no day"),
        (openai_page({"model": None, "input_tokens": 1}), "openai", "grouped by model"),
        (openai_page({"model": "m", "input_tokens": -1}), "openai", "input_tokens: '-1'"),
        (openai_page({"model": "m", "input_tokens": 1.5}), "openai", "input_tokens: '1.5'"),
        (openai_page({"amount": {"value": 1, "currency": "usd"}}), "openai", "report of costs"),
        (openai_page({"model": "m"}), "anthropic", "no time that can be read"),
    ],
)
def test_an_export_that_says_too_little_is_refused_by_name(text: str, provider: str, why: str) -> None:
    with pytest.raises(ExportError, match=why):
        read_export(text, provider)


def test_a_refused_export_is_named(taas: Taas, tmp_path: Path):
    shown = taas(
        "reconcile",
        "provider",
        written(tmp_path / "x.csv", "a,b\n1,2\n"),
        "--provider",
        "openai",
        exit_code=1,
    )
    assert "x.csv: its first line lacks" in shown.output


def test_counts_of_which_one_is_not_told_add_up() -> None:
    total = Counted()
    total.add(Counted(prompt=1))
    assert total.written is None
    total.add(Counted(prompt=1, written=1))
    assert (total.prompt, total.written) == (2, 1)
