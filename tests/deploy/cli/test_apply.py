"""Promises of `taas apply` and `taas export`, on a live admin API."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import Result

from billing.wire import redis_keys
from billing.wire.reservation import stored
from deploy.cli.apply import DIFFERS
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import wait_until

Taas = Callable[..., Result]
Told = Callable[..., Any]

WHOLE = """\
models:
  sim:
    context_tokens: 2048
    visible: [acme]
    routes: [chat, completions]
    weights: {{w_in_mu: 1000, w_cached_mu: 50, w_out_mu: 3000}}
  mine:
    context_tokens: 512
    owner: acme
pools:
  sim:
    instances: 4
    headroom: 20%
    set_aside: 12.5
    launch: {{instances: 2, gpus: 1, resources: {{rack-a: 1}}, engine_args: [--tensor-parallel-size, 1]}}
instances:
  by-hand:
    model: sim
    url: {url}/v1
prices:
  sim:
    - {{input: 0.10, output: 0.40}}
    - {{input: 0.20, cached_input: 0.02, cache_write: 0.25, output: 0.80, from: 2999-01-01}}
"""


class File:
    """A file of desired state, and `taas apply` of it."""

    def __init__(self, path: Path, taas: Taas) -> None:
        self.path = path
        self.taas = taas

    def write(self, text: str) -> None:
        self.path.write_text(text, encoding="utf-8")

    def apply(self, *options: str, exit_code: int = 0) -> str:
        return self.taas("apply", str(self.path), "--yes", *options, exit_code=exit_code).output

    def changes(self) -> list[tuple[str, str, str]]:
        """What a dry run would do."""
        code = 0
        try:
            said = self.taas("apply", str(self.path), "--dry-run", "--json", exit_code=DIFFERS)
        except AssertionError:
            said = self.taas("apply", str(self.path), "--dry-run", "--json", exit_code=code)
        return [(each["action"], each["what"], each["name"]) for each in json.loads(said.stdout)["changes"]]


@pytest.fixture
def file(taas: Taas, tmp_path: Path) -> File:
    taas("tenant", "create", "acme")
    return File(tmp_path / "taas.yaml", taas)


@pytest.fixture
def applied(file: File, engine: SimEngine, monkeypatch: pytest.MonkeyPatch) -> File:
    monkeypatch.setenv("TAAS_ENGINE_KEY", "not this one")
    key = file.path.with_name("engine.key")
    key.touch(0o600)
    key.write_text(engine.key)
    file.write(WHOLE.format(url=engine.url).replace("/v1\n", "/v1\n    key_file: engine.key\n"))
    file.apply()
    return file


def test_a_file_is_made_true_and_applied_again_it_changes_nothing(applied: File, told: Told) -> None:
    model = told("model", "show", "sim")
    assert (model["context_tokens"], model["routes"]) == (2048, ["chat", "completions"])
    assert list(model["tenant_names"].values()) == ["acme"]
    assert told("model", "show", "mine")["owner"] is not None
    pool = told("pool", "show", "sim")
    assert (pool["declared"], pool["headroom"], pool["set_aside"]) == (4, "0.2", "12.5")
    (instance,) = told("instance", "list")["data"]
    assert (instance["instance"], instance["status"]) == ("by-hand", "ready")
    later, now = told("price", "list")["data"]
    assert (now["input"], now["cached_input"], now["output"]) == ("0.10", "0.10", "0.40")
    assert (later["input"], later["cached_input"], later["from_ms"]) == ("0.20", "0.02", 32472144000000)
    assert (now["cache_write"], later["cache_write"]) == ("0.10", "0.25")
    assert applied.apply() == "no change\n"
    assert "no change" in applied.apply("--prune")
    assert applied.taas("apply", str(applied.path), "--dry-run").output == "no change\n"


def test_a_dry_run_shows_each_field_and_changes_nothing(applied: File, told: Told) -> None:
    text = applied.path.read_text()
    applied.write(text.replace("instances: 4", "instances: 8").replace("input: 0.10", "input: 2"))
    said = applied.taas("apply", str(applied.path), "--dry-run", exit_code=DIFFERS).output
    assert f"~ pool sim ({applied.path}:11)\n    instances: 4 → 8\n" in said
    assert "    input: 0.1 → 2\n" in said
    assert "by more than 10 times: input" in said
    assert told("pool", "show", "sim")["declared"] == 4
    assert applied.apply().endswith("done: change pool sim\ndone: change price sim\n")
    assert told("pool", "show", "sim")["declared"] == 8
    assert told("price", "list")["data"][1]["input"] == "2.00"


def test_nothing_is_changed_without_a_yes(file: File, told: Told) -> None:
    file.write("models:\n  m: {context_tokens: 100}\n")
    said = file.taas("apply", str(file.path), exit_code=2).output
    assert "give --yes" in said
    assert told("model", "list")["data"] == []


def test_what_the_file_lacks_goes_only_with_prune(applied: File, told: Told) -> None:
    applied.write("models: {sim: {context_tokens: 2048}}\npools: {}\ninstances: {}\nprices: {sim: []}\n")
    assert applied.apply() == "no change\n"
    said = applied.apply("--prune")
    for line in ("- instance by-hand", "- launch sim", "- model mine", "- price sim"):
        assert line in said
    assert told("model", "show", "mine")["status"] == "retired"
    assert [row["removed"] for row in told("instance", "list")["data"]] == [True]
    assert len(told("price", "list")["data"]) == 1
    assert applied.apply("--prune") == "no change\n"
    applied.write("models: {sim: {context_tokens: 2048}, mine: {context_tokens: 512}}\n")
    assert "status: retired → active" in applied.apply()


def test_a_section_that_is_not_there_is_not_touched(applied: File, told: Told) -> None:
    applied.write("models: {sim: {context_tokens: 2048}, mine: {context_tokens: 512}}\n")
    assert applied.apply("--prune") == "no change\n"
    assert [row["removed"] for row in told("instance", "list")["data"]] == [False]


def test_an_instance_that_changes_is_drained_and_added_anew(applied: File, told: Told) -> None:
    before = told("instance", "list")["data"][0]["epoch"]
    text = applied.path.read_text()
    applied.write(text.replace("    key_file", "    priority: true\n    key_file"))
    said = applied.apply()
    assert "± instance by-hand" in said
    assert "priority: no → yes" in said
    (instance,) = told("instance", "list")["data"]
    assert (instance["priority"], instance["removed"]) == (True, False)
    assert instance["epoch"] != before


def test_export_is_a_file_that_changes_nothing(applied: File) -> None:
    said = applied.taas("export").output
    assert "rack-a: 1" in said
    applied.write(said)
    assert applied.changes() == []
    assert "no change" in applied.apply("--prune")


def test_a_price_holds_until_the_next_one_of_the_file(applied: File, told: Told) -> None:
    """The price without a moment is not set again once a dated one has taken its place."""
    text = applied.path.read_text()
    applied.write(text.replace("from: 2999-01-01", "from: 2020-01-01"))
    said = applied.apply()
    assert "input: 0.1 → 0.2" in said
    assert told("price", "list")["data"][1]["input"] == "0.20"
    assert applied.apply() == "no change\n"


def test_a_half_failed_apply_says_what_was_done_and_goes_on_the_next_time(file: File, told: Told) -> None:
    text = "models: {m: {context_tokens: 100}}\ninstances:\n  i: {model: m, url: 'http://127.0.0.1:1'}\n"
    file.write(text)
    said = file.apply(exit_code=1)
    assert f"{file.path}:3: create of instance i:" in said
    assert "1 of 2 changes are made; not made: instance i." in said
    assert told("model", "show", "m")["status"] == "active"
    assert file.changes() == [("create", "instance", "i")]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("models:\n  m:\n    context_tokens: 100\n    colour: red\n", 4, "a model has no field 'colour'"),
        ("model: {}\n", 1, "there is no section 'model'"),
        ("models:\n  m: {}\n", 2, "a model needs context_tokens"),
        ("models:\n  m:\n    context_tokens: many\n", 3, "context_tokens of a model is a whole number"),
        ("models:\n  m: {context_tokens: 1}\n  m: {context_tokens: 2}\n", 3, "'m' is there twice"),
        ("models:\n  m:\n    context_tokens: 1\n    visible:\n    - nobody\n", 4, "no tenant"),
        ("models:\n  m:\n    context_tokens: 1\n    routes: [chat, talk]\n", 4, "one of chat"),
        ("models: [m]\n", 1, "models is a mapping"),
        ("models: {\n", 2, "is not YAML"),
        ("", 1, "is empty"),
        ("a: &a {}\nb: *a\n", 2, "anchors and aliases"),
        ("pools:\n  p: {instances: 1}\n", 2, "there is no pool 'p'"),
        ("models: {m: {context_tokens: 9}}\npools:\n  m: {headroom: most}\n", 3, "10% or 0.1"),
        ("models: {m: {context_tokens: 9}}\npools:\n  m/pooling: {instances: 1}\n", 3, "only have a launch"),
        ("models: {m: {context_tokens: 9}}\npools:\n  m:\n    launch: {gpus: 1}\n", 4, "needs instances"),
        ("models: {m: {context_tokens: 9, pool: p}}\npools:\n  p:\n    launch: {instances: 1}\n", 4, "name"),
        ("instances:\n  i: {url: 'http://a'}\n", 2, "an instance needs model"),
        ("instances:\n  i: {model: m, url: 'http://a'}\n", 2, "there is no model 'm'"),
        ("models: {m: {context_tokens: 9}}\ninstances:\n  i:\n    model: m\n    url: nowhere\n", 5, "http"),
        ("instances:\n  i: {model: m, url: 'https://a', provider: who}\n", 2, "one of openai, anthropic"),
        ("models: {m: {context_tokens: 9}}\ninstances:\n"
         "  i: {model: m, url: 'https://a', provider: openai}\n", 3, "requires a key"),
        ("models: {m: {context_tokens: 9}}\ninstances:\n"
         "  i: {model: m, url: 'https://a', provider: openai, key_file: no.key}\n", 3, "no.key"),
        ("prices:\n  nobody:\n  - {free: true}\n", 3, "there is no model 'nobody'"),
        ("prices:\n  m:\n  - {input: 1}\n", 3, "a price needs input and output"),
        ("prices:\n  m:\n  - {input: -1, output: 1}\n", 3, "input of a price is a decimal"),
        ("prices:\n  m:\n  - {input: 1, output: 1, from: soon}\n", 3, "from of a price is a moment"),
        ("prices:\n  m:\n  - {free: true}\n  - {free: true}\n", 4, "begins at the same moment"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_error_with_its_line_and_changes_nothing(
    file: File, told: Told, text: str, line: int, said: str
) -> None:
    file.write(text)
    output = file.apply(exit_code=1)
    assert output.startswith(f"Error: {file.path}:{line}: "), output
    assert said in output
    assert output.count("\n") == 1
    assert told("model", "list")["data"] == []


def test_a_file_that_others_cannot_be_read_from_is_said(file: File) -> None:
    assert "cannot be read: No such file" in file.apply(exit_code=1)
    file.path.write_bytes(b"models:\n\xff\n")
    assert f"{file.path}:2: is not UTF-8" in file.apply(exit_code=1)


def test_what_a_model_keeps_for_good_is_said(applied: File) -> None:
    applied.write("models:\n  sim:\n    context_tokens: 2048\n    pool: other\n")
    assert f"{applied.path}:4: the pool of model sim is sim for good" in applied.apply(exit_code=1)


def test_what_others_need_waits_until_an_instance_has_no_open_request(
    applied: File, told: Told, valkey: redis.Redis
) -> None:
    """It gets no new ones at once; its model is retired when the last one has ended."""
    (instance,) = told("instance", "list")["data"]
    head = json.dumps({"instance": "by-hand", "epoch": instance["epoch"]})
    valkey.hset(redis_keys.reservation("sim", "req_1"), stored("head")[0], head)
    valkey.zadd(redis_keys.open_requests("sim"), {"req_1": 1})
    applied.write("models: {mine: {context_tokens: 512}}\ninstances: {}\n")

    def end_when_removed() -> None:
        wait_until(lambda: "draining" in str(valkey.hget(redis_keys.INSTANCES, "by-hand")), "draining")
        ended.append(told_status(valkey))
        valkey.zrem(redis_keys.open_requests("sim"), "req_1")

    ended: list[str] = []
    ending = threading.Thread(target=end_when_removed)
    ending.start()
    said = applied.apply("--prune")
    ending.join()
    assert ended == ["active"]
    assert told_status(valkey) == "retired"
    assert said.index("done: delete instance by-hand") < said.index("done: delete model sim")


def told_status(valkey: redis.Redis) -> str:
    """Of the model, as gateways see it."""
    return str(json.loads(valkey.hget(redis_keys.MODELS, "sim") or "{}")["status"])


def test_what_providers_charge_is_applied_by_model_and_by_instance(file: File) -> None:
    key = file.path.with_name("provider.key")
    key.touch(0o600)
    key.write_text("sk-provider")
    file.taas("model", "add", "gpt", "--context", "100")
    file.taas(
        "instance", "add", "--model", "gpt", "--provider", "openai", "--url", "https://127.0.0.1:1",
        "--key-file", str(key), "--instance", "at-openai", "--force",
    )  # fmt: skip
    file.write(
        "cost_prices:\n  gpt:\n"
        "  - {input: 1, output: 4}\n"
        "  - {instance: at-openai, input: 0.9, output: 3.5}\n"
        "  - {instance: at-openai, input: 0.8, output: 3, from: 2999-01-01}\n"
    )
    said = file.apply()
    assert "+ cost price gpt" in said
    assert "instance: at-openai" in said
    assert file.apply() == "no change\n"
    exported = file.taas("export").output
    assert "instance: at-openai" in exported
    file.write(exported)
    assert "no change" in file.apply("--prune")
    file.write("cost_prices:\n  gpt:\n  - {instance: nobody, input: 1, output: 4}\n")
    assert f"{file.path}:3: there is no instance 'nobody'" in file.apply(exit_code=1)
    file.write("cost_prices: {gpt: []}\n")
    assert file.apply("--prune").endswith("done: delete cost price gpt\n")


def test_adapters_and_the_bounds_of_scaled_pools_are_applied(file: File, told: Told) -> None:
    models = "models: {m: {context_tokens: 100}}\n"
    file.write(
        f"{models}adapters:\n  m:ft: {{path: /ft, owner: acme}}\n"
        "pools:\n  m: {instances: 4, autoscale: {min: 1, max: 3}}\n"
        "prices:\n  m:ft: [{input: 1, output: 2}]\n"
    )
    said = file.apply()
    assert "+ adapter m:ft" in said
    assert "+ autoscaling m" in said
    assert file.apply("--prune") == "no change\n"
    assert told("adapter", "list")["data"][0]["path"] == "/ft"
    assert told("price", "list")["data"][0]["model"] == "m:ft"
    exported = file.taas("export").output
    file.write(exported)
    assert "no change" in file.apply("--prune")
    file.write(exported.replace("/ft", "/ft-2").replace("max: 3", "max: 2"))
    said = file.apply()
    assert "path: /ft → /ft-2" in said
    assert "max: 3 → 2" in said
    file.write(f"{models}adapters: {{}}\npools: {{m: {{instances: 4}}}}\n")
    assert file.apply() == "no change\n"
    said = file.apply("--prune")
    assert "- adapter m:ft" in said
    assert "- autoscaling m" in said
    assert file.apply("--prune") == "no change\n"
    file.write("adapters:\n  other:ft: {path: /ft, owner: acme}\n")
    assert f"{file.path}:2: an adapter is BASE:NAME" in file.apply(exit_code=1)
    file.write("models: {}\n")
    assert (
        "adapter" not in file.taas("apply", str(file.path), "--prune", "--dry-run", exit_code=DIFFERS).output
    )
