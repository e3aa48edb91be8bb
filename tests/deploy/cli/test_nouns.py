"""Every noun of `taas`, through a live admin API: the words of the glossary, JSON for programs, tables for
people.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tests.deploy.cli.conftest import Taas, run
from tests.fixtures.valkey import free_port

Told = Callable[..., Any]


@pytest.fixture
def acme(told: Told) -> dict[str, Any]:
    """A tenant."""
    made: dict[str, Any] = told("tenant", "create", "acme")
    return made


@pytest.fixture
def llama(told: Told) -> dict[str, Any]:
    """A model with a name that needs quoting in a URL."""
    made: dict[str, Any] = told("model", "add", "org/llama", "--context", "4096")
    return made


def test_a_tenant_is_created_listed_suspended_and_resumed(taas: Taas, told: Told):
    assert told("tenant", "create", "acme")["kind"] == "external"
    assert told("tenant", "create", "team", "--internal", "--no-on-demand")["on_demand"] is False
    assert [each["name"] for each in told("tenant", "list")["data"]] == ["acme", "team"]
    assert told("tenant", "suspend", "acme", "--stop-streams")["status"] == "suspended"
    assert told("tenant", "resume", "acme")["status"] == "active"
    assert told("tenant", "set", "acme", "--redis-down", "lease:100:5000")["redis_down"]["units"] == 5000
    assert "lease of 100 requests" in taas("tenant", "show", "acme").stdout
    assert told("tenant", "set", "acme", "--redis-down", "refuse", "--no-on-demand")["on_demand"] is False
    assert told("tenant", "set", "acme", "--retain-answers", "24h")["retain_answers_s"] == 86_400
    assert "for 86400 s" in taas("tenant", "show", "acme").stdout
    taas("tenant", "set", "acme", "--retain-answers", "25h", exit_code=1)
    assert told("tenant", "set", "acme", "--retain-answers", "0s")["retain_answers_s"] == 0


def test_a_table_has_a_line_for_each_and_is_not_cut_through_a_pipe(taas: Taas, told: Told):
    name = "a" * 120
    tenant = told("tenant", "create", name)["tenant"]
    heading, line = taas("tenant", "list").stdout.splitlines()
    assert heading.split()[:4] == ["NAME", "TENANT", "KIND", "STATUS"]
    assert line.split()[:4] == [name, tenant, "external", "active"]


def test_a_key_is_printed_alone_so_that_a_shell_can_take_it(taas: Taas, told: Told, acme):
    result = taas("key", "create", "--tenant", "acme")
    assert re.fullmatch(r"sk-[A-Za-z0-9_-]{43}\n", result.stdout)
    assert "not shown again" in result.stderr
    made = told("key", "create", "--tenant", "acme", "--name", "ci", "--expires", "2999-01-01")
    assert made["key"].startswith("sk-")
    assert made["expires_at_ms"] == 32_472_144_000_000
    assert told("key", "revoke", made["key_id"])["status"] == "revoked"
    listed = taas("key", "list", "--tenant", "acme").stdout
    assert made["key"] not in listed
    assert made["key"][-4:] in listed
    assert "revoked" in listed


def test_admin_keys_have_roles_and_what_they_change_is_in_the_audit_log(
    taas: Taas, told: Told, monkeypatch: pytest.MonkeyPatch, migrated_database_url: str
):
    result = taas("admin-key", "create", "--role", "finance", "--why", "Jane joins: größer")
    assert re.fullmatch(r"sk-admin-[A-Za-z0-9_-]{43}\n", result.stdout)
    (finance,) = told("admin-key", "list", "--role", "finance")["data"]
    assert taas("admin-key", "create", "--role", "admin", exit_code=1).output.count("name the tenant") == 1
    told("tenant", "create", "acme")
    owner = told("admin-key", "create", "--role", "admin", "--tenant", "acme", "--expires", "90d")
    root = os.environ["TAAS_ADMIN_KEY"]
    monkeypatch.setenv("TAAS_ADMIN_KEY", owner["key"])
    told("project", "create", "search", "--tenant", "acme", "--why", "a new team")
    assert "may not do this" in taas("tenant", "create", "bolt", exit_code=1).output
    assert [each["actor"] for each in told("audit-log", "list")["data"]][:2] == [owner["key_id"], "root"]
    monkeypatch.setenv("TAAS_ADMIN_KEY", root)
    turned = told("admin-key", "rotate", owner["key_id"], "--overlap", "1h", "--why", "yearly")
    assert told("admin-key", "revoke", owner["key_id"])["status"] == "revoked"
    assert "last used" in taas("admin-key", "show", turned["key_id"]).stdout
    (first,) = told("audit-log", "list", "--subject", finance["key_id"])["data"]
    assert (first["actor"], first["action"]) == ("root", "POST /admin/v1/admin-keys")
    assert first["why"] == "Jane joins: größer"
    assert [each["why"] for each in told("audit-log", "list", "--actor", owner["key_id"])["data"]] == [
        "a new team"
    ]
    listed = taas("audit-log", "list", "--kind", "admin_key", "--limit", "1").stdout
    assert "revoked_ms: None → " in listed
    assert "nothing was changed" in taas("audit-log", "list", "--until", "2001-01-01").stdout
    assert "residual: 0" in taas("audit").stdout
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        connection.execute(text("set local session_replication_role = replica"))
        connection.execute(text("update audit_log set actor = 'root' where actor like 'adm\\_%'"))
    engine.dispose()
    altered = told("audit-log", "list", "--action", "projects")["data"][0]["entry"]
    assert f"entry {altered}: it was changed" in taas("audit", exit_code=1).stdout


def test_projects_keep_keys_apart(taas: Taas, told: Told, acme):
    project = told("project", "create", "search", "--tenant", "acme")
    assert told("key", "create", "--tenant", "acme", "--project", "search")["project"] == project["project"]
    assert "search" in taas("project", "list", "--tenant", "acme").stdout


def test_limits_are_set_field_by_field_and_lifted(taas: Taas, told: Told, acme, llama):
    told("limit", "set", "--tenant", "acme", "--requests-per-minute", "60", "--units-per-minute", "100000")
    both = told("limit", "set", "--tenant", "acme", "--concurrency", "4", "--units-per-minute", "none")
    assert (both["requests_per_minute"], both["units_per_minute"], both["concurrency"]) == (60, None, 4)
    told("limit", "set", "--tenant", "acme", "--model", "org/llama", "--concurrency", "1")
    key = told("key", "create", "--tenant", "acme")["key_id"]
    assert (
        told("limit", "set", "--tenant", "acme", "--key", key, "--requests-per-minute", "0")["key_id"] == key
    )
    assert len(told("limit", "list", "--tenant", "acme")["data"]) == 3
    assert "none" in taas("limit", "list").stdout
    taas("limit", "remove", "--tenant", "acme", "--model", "org/llama")
    taas("limit", "remove", "--key", key)
    assert len(told("limit", "list")["data"]) == 1


def test_a_model_that_comes_with_us_needs_its_name_only(told: Told):
    made = told("model", "add", "smollm2-135m-instruct")
    assert made["vocabulary_tokens"] == 49152
    assert made["weights"]["w_out_mu"] == 4000


def test_a_model_is_shown_and_changed_by_a_name_with_a_slash(taas: Taas, told: Told, acme, llama):
    assert told("model", "show", "org/llama") == llama
    changed = told(
        "model",
        "set",
        "org/llama",
        "--weights",
        "1,2,3",
        "--route",
        "chat",
        "--for",
        "acme",
        "--max-body-bytes",
        "8000000",
    )
    assert changed["max_body_bytes"] == 8_000_000
    assert (changed["weights"]["version"], changed["routes"], changed["visible"]) == (
        2,
        ["chat"],
        [acme["tenant"]],
    )
    assert "acme" in taas("model", "show", "org/llama").stdout
    assert told("model", "set", "org/llama", "--status", "retired")["status"] == "retired"
    private = told(
        "model",
        "add",
        "ft",
        "--context",
        "10",
        "--owner",
        "acme",
        "--allow-template-kwarg",
        "enable_thinking",
    )
    assert (private["owner"], private["chat_template_kwargs"]) == (acme["tenant"], ["enable_thinking"])
    assert "acme (owner)" in taas("model", "list").stdout


def test_an_instance_is_added_listed_and_removed(taas: Taas, told: Told, llama):
    url = f"http://127.0.0.1:{free_port()}"
    refused = taas("instance", "add", "--model", "org/llama", "--url", url, exit_code=1)
    assert "does not answer" in refused.stderr
    added = taas("instance", "add", "--model", "org/llama", "--url", url, "--instance", "gpu-1", "--force")
    assert "gpu-1 serves org/llama" in added.stdout
    assert "warning:" in added.stderr
    assert told("instance", "list")["data"][0]["instance"] == "gpu-1"
    assert url in taas("instance", "list").stdout
    assert told("pool", "list")["data"][0]["ready"] == 1
    assert "org/llama" in taas("pool", "list").stdout
    assert f"Its engine at {url} does not answer." in taas("instance", "remove", "gpu-1").stdout
    assert "removed" in taas("instance", "list").stdout


def test_a_pool_that_is_said_to_have_more_than_is_there_is_told_so(taas: Taas, told: Told, llama):
    url = f"http://127.0.0.1:{free_port()}"
    told("instance", "add", "--model", "org/llama", "--url", url, "--instance", "gpu-1", "--force")
    assert told("pool", "show", "org/llama")["instances"] == told("pool", "list")["data"][0]["instances"] == 1
    words = "1 of 100 are ready: what is signed beyond these is not there yet"
    assert words in taas("pool", "set", "org/llama", "--instances", "100").stdout
    assert told("pool", "set", "org/llama", "--instances", "100")["ready"] == 1
    assert re.search(r"^ready +1$", taas("pool", "show", "org/llama").stdout, re.MULTILINE)
    for silent in (["--set-aside", "1"], ["--instances", "1"]):
        assert "are ready" not in taas("pool", "set", "org/llama", *silent).stdout


def test_a_provider_is_added_with_its_key_from_a_file(taas: Taas, told: Told, llama, tmp_path):
    url, path = f"http://127.0.0.1:{free_port()}/v1", tmp_path / "key"
    words = ["instance", "add", "--model", "org/llama", "--url", url, "--force", "--key-file", str(path)]
    path.write_text("sk-of-the-provider\n")
    path.chmod(0o644)
    assert "chmod 600" in taas(*words, "--provider", "openai", exit_code=1).stderr
    path.chmod(0o600)
    assert "openai" in taas(*words, "--provider", "nobody", exit_code=2).stderr
    assert "not both" in taas(*words, "--key", "k", exit_code=2).stderr
    named = ["--provider", "anthropic", "--engine-model", "big", "--max-concurrency", "7", "--instance", "p1"]
    added = taas(*words, *named)
    (row,) = told("instance", "list")["data"]
    assert (row["engine"], row["engine_model"], row["max_concurrency"]) == ("anthropic", "big", 7)
    listed, gone = taas("instance", "list"), taas("instance", "remove", "p1")
    assert "anthropic" in listed.stdout
    assert "is another provider's" in gone.stdout
    assert not [each for each in (added, listed, gone) if "sk-of" in each.output]


def test_an_instance_is_added_as_one_that_schedules_by_priority(taas: Taas, told: Told, llama):
    for name, flags in (("plain", []), ("ranked", ["--priority"])):
        url = f"http://127.0.0.1:{free_port()}"
        told("instance", "add", "--model", "org/llama", "--url", url, "--instance", name, "--force", *flags)
    listed = {row["instance"]: row["priority"] for row in told("instance", "list")["data"]}
    assert listed == {"plain": False, "ranked": True}


def test_a_price_is_set_and_listed(taas: Taas, told: Told, llama):
    price = told(
        "price", "set", "--model", "org/llama", "--input", "0.15", "--cached-input", "0.03", "--output", "0.6"
    )
    assert (price["input"], price["cached_input"], price["output"]) == ("0.15", "0.03", "0.60")
    later = ["price", "set", "--model", "org/llama", "--input", "1", "--output", "1", "--from", "2999-01-01"]
    assert "by more than 10 times" in taas(*later, exit_code=2).stderr
    wrong = told(*later, "--yes")["price_id"]
    assert told(*later, "--cached-input", "0.1", "--yes")["replaces"] == wrong
    assert "2999-01-01" in taas("price", "list", "--model", "org/llama").stdout
    refused = taas("price", "set", "--model", "org/llama", "--input=-1", "--output", "1", exit_code=1)
    assert "-1" in refused.stderr


def test_a_model_without_a_price_is_warned_of_until_it_has_one(taas: Taas, told: Told):
    assert "has no price" in taas("model", "add", "m", "--context", "4096").stderr
    assert "no: no price" in taas("model", "list").stdout
    (finding,) = told("audit")["findings"]
    assert (finding["kind"], finding["ids"]) == ("not_for_sale", ["m"])
    assert told("price", "set", "--model", "m", "--free")["input"] == "0.00"
    assert "no: no price" not in taas("model", "list").stdout
    assert told("audit")["findings"] == []


def test_a_future_price_is_withdrawn(taas: Taas, told: Told, llama):
    price = told("price", "set", "--model", "org/llama", "--free", "--from", "+30d")["price_id"]
    assert "is withdrawn" in taas("price", "withdraw", str(price)).stdout
    assert told("price", "list")["data"] == []


def test_a_key_is_changed_rotated_and_shown(taas: Taas, told: Told, acme, llama):
    key = told("key", "create", "--tenant", "acme", "--expires", "30d", "--model", "org/llama")
    assert key["models"] == ["org/llama"]
    assert (
        told("key", "set", key["key_id"], "--name", "ci", "--expires", "never", "--any-model")["models"]
        is None
    )
    assert "all of its tenant" in taas("key", "show", key["key_id"]).stdout
    rotated = taas("key", "rotate", key["key_id"], "--overlap", "24h")
    assert re.fullmatch(r"sk-[A-Za-z0-9_-]{43}\n", rotated.stdout)
    assert "works until" in rotated.stderr
    assert (
        "is no moment. Give a date such as"
        in taas("key", "set", key["key_id"], "--expires", "soon", exit_code=2).stderr
    )


def test_tenants_and_projects_are_renamed_archived_and_taken_back(taas: Taas, told: Told, acme):
    told("project", "create", "search", "--tenant", "acme")
    assert "is active" in taas("project", "rename", "search", "find", "--tenant", "acme").stdout
    assert told("project", "archive", "find", "--tenant", "acme")["status"] == "archived"
    assert "find" not in taas("project", "list").stdout
    assert "find" in taas("project", "list", "--all").stdout
    assert told("project", "restore", "find", "--tenant", "acme")["status"] == "active"
    assert told("tenant", "rename", "acme", "ace")["tenant"] == acme["tenant"]
    assert told("tenant", "archive", "ace")["status"] == "archived"
    assert told("tenant", "list")["data"] == []
    assert len(told("tenant", "list", "--all")["data"]) == 1
    assert told("tenant", "resume", "ace")["status"] == "active"


def test_usage_and_audit_of_nothing(taas: Taas, told: Told, acme):
    assert told("usage", "--tenant", "acme", "--by", "model,hour")["lines"] == []
    assert "nothing was used" in taas("usage", "--from", "2026-01-01", "--until", "2026-02-01").stdout
    audited = told("audit")
    assert audited.pop("audit_log")["entry"] == told("audit-log", "list", "--limit", "1")["data"][0]["entry"]
    nothing = {"instances": [], "residual_tokens": 0, "findings": []}
    assert audited == {"checked": "since_checkpoint", **nothing}
    assert told("audit", "--full")["checked"] == "all"
    assert told("checkpoint", "list")["data"] == []
    head = told("checkpoint", "now")["checkpoint"]
    (last,) = told("audit-log", "list", "--limit", "1")["data"]
    assert (head["tenant"], head["position"], head["hash"]) == ("audit_log", last["entry"], last["hash"])
    assert "no link yet" in taas("checkpoint", "now", "--tenant", "acme", exit_code=1).output
    assert "residual: 0 tokens" in taas("audit").stdout


def test_a_request_that_never_was_is_neither_stopped_nor_shown(taas: Taas, told: Told):
    assert "no request" in taas("request", "stop", "req_1", exit_code=1).stderr
    assert "no request" in taas("request", "show", "req_1", exit_code=1).stderr


def test_what_is_refused_ends_with_1_and_says_why(taas: Taas, acme):
    assert "already" in taas("tenant", "create", "acme", exit_code=1).stderr
    assert "no tenant 'nobody'" in taas("key", "create", "--tenant", "nobody", exit_code=1).stderr
    assert (
        "taas model add" in taas("instance", "add", "--model", "x", "--url", "http://h", exit_code=1).stderr
    )


@pytest.mark.parametrize(
    "args",
    [
        ["nothing"], ["tenant", "create"], ["key", "create"], ["limit", "set", "--tenant", "x"], ["limit",
        "set", "--concurrency", "1"],
        ["limit", "set", "--tenant", "x", "--concurrency", "-1"], ["model", "set", "x"], ["model", "add",
        "unknown"],
        ["model", "add", "x", "--weights", "1,2"], ["model", "set", "x", "--visible", "internal", "--for",
        "y"],
        ["tenant", "set", "x"], ["tenant", "set", "x", "--redis-down", "lease"], ["price", "set", "--model",
        "x"],
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_2(args: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAAS_ADMIN_KEY", "none")
    assert "Usage:" in run(*args, exit_code=2).stderr


def test_json_is_json_and_nothing_else(taas: Taas, acme):
    for args in (
        ["tenant", "list"],
        ["key", "list"],
        ["limit", "list"],
        ["model", "list"],
        ["instance", "list"],
        ["pool", "list"],
        ["price", "list"],
    ):
        json.loads(taas(*args, "--json").stdout)
        assert taas(*args).stdout


def test_a_list_of_several_pages_is_read_whole_or_as_far_as_asked(told: Told, migrated_database_url: str):
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "insert into tenant (tenant_id, name, kind, on_demand, redis_down)"
            " select 'ten_' || n, 'tenant-' || to_char(n, 'FM00000'), 'external', true, '{\"policy\": "
            '"refuse"}\''
            " from generate_series(1, 1203) n"
        )
    engine.dispose()
    names = [row["name"] for row in told("tenant", "list")["data"]]
    assert names == [f"tenant-{n:05}" for n in range(1, 1204)]
    assert [row["name"] for row in told("tenant", "list", "--limit", "1001")["data"]] == names[:1001]
    assert [row["name"] for row in told("tenant", "list", "--name", "NT-0120")["data"]] == names[1199:]


def test_a_sink_is_created_paused_resumed_and_removed_and_its_keys_are_not_shown(
    taas: Taas, told: Told, acme, tmp_path: Path
):
    key = tmp_path / "key"
    key.write_text("open-sesame\n")
    sink = ("sink", "create", "--url", "https://meters.example/events", "--bearer-file", str(key))
    made = told(*sink, "--format", "lago", "--tenant", "acme", "--customer", "sub_1", "--from", "30d")
    assert made["secret"].startswith("whsec_")
    taas(*sink, "--format", "stripe", exit_code=1)
    taas("sink", "create", "--url", "http://meters.example", "--format", "lago", exit_code=1)
    listed = taas("sink", "list", "--json").stdout
    (shown,) = json.loads(listed)["data"]
    assert (shown["sink"], shown["customer"], shown["undelivered"]) == (made["sink"], "sub_1", 0)
    logged = taas("audit-log", "list", "--json").stdout
    assert made["sink"] in logged
    for secret in ("open-sesame", made["secret"]):
        assert secret not in listed + logged
    assert told("sink", "pause", made["sink"])["paused"] is True
    assert "yes" in taas("sink", "list").stdout
    assert told("sink", "resume", made["sink"])["paused"] is False
    assert "nothing was skipped" in taas("sink", "skipped", made["sink"]).stdout
    assert "is removed" in taas("sink", "remove", made["sink"]).stdout
    taas("sink", "skipped", made["sink"], exit_code=1)


def test_retention_says_what_is_kept_and_drops_nothing_that_is_not_final(taas: Taas, told: Told):
    found = told("retention", "show")
    assert (found["days"], found["due"], found["dropped"]) == (None, [], [])
    assert "kept" in taas("retention", "show", "--days", "90").stdout
    assert "no day can be dropped" in taas("retention", "run", "--days", "90", "--yes").stdout
    taas("retention", "run", "--days", "34", "--yes", exit_code=2)
