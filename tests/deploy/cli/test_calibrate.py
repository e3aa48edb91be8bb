"""`taas calibrate` on a simulated engine, through a live admin API: what it stores and shows, and what it
refuses before it loads anything.
"""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import redis
from click.testing import CliRunner

from billing.wire import redis_keys
from deploy.cli.engine_access import find_hardware
from deploy.cli.main import main
from loadtest import plain_http
from tests.deploy.cli.conftest import ADMIN_KEY, Taas, run
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import wait_until

Told = Callable[..., Any]
FAST = ("--decode-ms", "2", "--prefill-tokens-per-s", "40000", "--slots", "2")
QUICK = ("--yes", "--seconds-per-step", "0.3")


@pytest.fixture
def engine(
    make_engine: EngineMaker, told: Told, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> SimEngine:
    """An engine that the installation knows as instance `sim-1` of `sim`, with its key where the registry
    has it.
    """
    monkeypatch.setenv("TAAS_REDIS_URL", valkey_url)
    monkeypatch.delenv("TAAS_ENGINE_KEY", raising=False)
    engine = make_engine(*FAST)
    told("model", "add", "sim", "--context", "2048")
    told("price", "set", "--model", "sim", "--free")
    told("instance", "add", "--model", "sim", "--url", engine.url, "--key", engine.key, "--instance", "sim-1")
    return engine


def test_calibrating_measures_shows_stores_and_leaves_nothing_unaccounted(
    taas: Taas, told: Told, engine: SimEngine, valkey: redis.Redis, admin_url: str
) -> None:
    signed = signed_by_other_weights(told, admin_url)
    result = taas("calibrate", "sim", *QUICK, "--hardware", "a test", "--reweigh")
    assert "typical, 1 at once" in result.stderr
    assert engine.key not in result.output
    for words in (
        "MIX", "held back", "prompts of 1024 (not fitted)", "units per second and instance",
        "on the mix held back", "% on prompts of 1024", "a test", "1000/",
    ):  # fmt: skip
        assert words in result.stdout
    assert "a test" in taas("calibrate", "sim", "--history").stdout
    found, _ = told("calibrate", "--history")["data"]
    assert (found["pool"], found["model"], found["instance"]) == ("sim", "sim", "sim-1")
    assert found["sequences"] >= 1
    assert float(found["capacity_units_per_second"]) > 1000
    assert found["weights"]["w_in_mu"] == 1000
    assert found["weights"]["version"] == 3
    for command in ("show", "history"):
        assert "1000/1000/9000000 v2 → 1000/" in taas("contract", command, signed).stdout
    assert 0 <= float(found["error"]) <= 0.5
    assert found["engine_version"] == "0.32.0"
    assert found["hardware"] == "a test"
    assert [step["mix"] for step in found["steps"] if step["held_back"]] == ["held back", "prompts of 1024"]
    assert told("model", "show", "sim")["weights"] == found["weights"]
    assert json.loads(str(valkey.hget(redis_keys.MODELS, "sim")))["weights"] == found["weights"]
    assert told("pool", "show", "sim")["instances"] == 1
    audit = told("audit")
    assert audit["residual_tokens"] == 0
    (instance,) = audit["instances"]
    assert instance["absorbed"] == instance["produced"] == {
        "prompt": engine.counters()["prompt"], "generation": engine.counters()["generation"],
    }  # fmt: skip


def test_the_hardware_is_what_is_said_or_this_machine_if_the_engine_is_here() -> None:
    assert find_hardware("http://10.0.0.1:8100", "a test") == "a test"
    here = find_hardware("http://127.0.0.1:8100", None)
    # A worker with `--host` has an address of this machine other than localhost.
    for address in ("127.0.0.2", "localhost"):
        assert find_hardware(f"http://{address}:8100", None) == here
    assert "cores" in here or " x " in here
    with pytest.raises(click.UsageError, match="another machine"):
        find_hardware("http://10.0.0.1:8100", None)


@pytest.mark.usefixtures("terminal")
def test_it_asks_first_and_a_no_loads_nothing(taas: Taas, engine: SimEngine) -> None:
    result = CliRunner().invoke(main, ["calibrate", "sim"], input="n\n")
    assert result.exit_code == 1
    assert "Go on?" in result.output
    assert generations(engine) == 0


def test_a_busy_engine_is_left_alone(taas: Taas, told: Told, engine: SimEngine) -> None:
    body = {"model": "sim", "prompt": "tide", "max_tokens": 1000, "ignore_eos": True}
    asking = threading.Thread(target=engine.post, args=("/v1/completions", body))
    asking.start()
    wait_until(lambda: engine.counters()["running"] == 1, "a request that runs")
    said = run("calibrate", "sim", *QUICK, exit_code=1).stderr
    assert "not idle" in said
    asking.join()
    assert generations(engine) == 1
    assert told("calibrate", "--history")["data"] == []


def test_an_instance_whose_load_says_that_it_works_is_left_alone(
    taas: Taas, engine: SimEngine, valkey: redis.Redis
) -> None:
    entry = json.loads(str(valkey.hget(redis_keys.INSTANCES, "sim-1")))
    valkey.hset(
        redis_keys.INSTANCES,
        "sim-1",
        json.dumps(entry | {"load": {"running": 0, "waiting": 3, "kv_usage": 0.1}}),
    )
    said = run("calibrate", "sim", *QUICK, exit_code=1).stderr
    assert "sim-1 runs 0, 3 wait" in said
    assert generations(engine) == 0


def test_an_instance_that_has_just_become_idle_is_waited_for(
    taas: Taas, engine: SimEngine, valkey: redis.Redis
) -> None:
    entry = json.loads(str(valkey.hget(redis_keys.INSTANCES, "sim-1")))
    busy = json.dumps(entry | {"load": {"running": 1, "waiting": 0, "kv_usage": 0.1}})
    valkey.hset(redis_keys.INSTANCES, "sim-1", busy)

    def looked_at() -> int:
        untyped: Any = valkey
        return int(untyped.info("commandstats").get("cmdstat_hgetall", {}).get("calls", 0))

    before, said = looked_at(), []
    asking = threading.Thread(
        target=lambda: said.append(
            run("calibrate", "sim", *QUICK, "--engine-key", "wrong", exit_code=1).output
        )
    )
    asking.start()
    wait_until(lambda: looked_at() > before, "a look at the instances")
    valkey.hset(redis_keys.INSTANCES, "sim-1", json.dumps(entry))
    asking.join()
    assert "refuses the key" in said[0]


def test_a_failed_measurement_stores_nothing_but_what_it_cost(
    taas: Taas, told: Told, engine: SimEngine
) -> None:
    said = run("calibrate", "sim", *QUICK, "--tpot-ms", "1", exit_code=1).stderr
    assert "--tpot-ms" in said
    assert told("calibrate", "--history")["data"] == []
    assert told("model", "show", "sim")["weights"]["version"] == 1
    assert engine.counters()["generation"] > 0
    assert told("audit")["residual_tokens"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_one_that_is_told_to_stop_says_what_it_cost(
    taas: Taas, told: Told, engine: SimEngine, number: signal.Signals
) -> None:
    # Whoever started the tests may ignore some of these signals, and so would its children.
    heeding = [
        "env",
        f"--default-signal={number.name.removeprefix('SIG')}",
        str(Path(sys.executable).with_name("taas")),
    ]
    command = [*heeding, "calibrate", "sim", "--yes", "--hardware", "a test"]
    # Long steps: it cannot be done before it is told.
    with subprocess.Popen([*command, "--seconds-per-step", "60"], stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE, text=True) as running:  # fmt: skip
        wait_until(lambda: engine.counters()["generation"] > 0, "a token for the measurement")
        running.send_signal(number)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 1, said
    assert "absorbed, billed to nobody" in said
    assert "Traceback" not in said
    audit = told("audit")
    assert audit["residual_tokens"] == 0
    assert audit["instances"][0]["absorbed"]["generation"] == engine.counters()["generation"] > 0
    assert told("calibrate", "--history")["data"] == []


def test_weights_that_change_what_is_signed_take_a_word_and_cost_what_they_cost(
    taas: Taas, told: Told, engine: SimEngine, admin_url: str
) -> None:
    signed = signed_by_other_weights(told, admin_url)
    said = taas(
        "calibrate", "sim", "--yes", "--seconds-per-step", "0.2", "--hardware", "a test", exit_code=1
    ).stderr
    assert "nothing was stored: " in said
    assert re.search(r"output 9000 → [\d.]+, and 1 contract is signed by the old weights", said)
    assert len(told("calibrate", "--history")["data"]) == 1
    assert "reweighed" not in taas("contract", "show", signed).stdout
    audit = told("audit")
    assert audit["residual_tokens"] == 0
    assert audit["instances"][0]["absorbed"]["generation"] == engine.counters()["generation"] > 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("calibrate",), 2, "name a pool"),
        (("calibrate", "sim"), 2, "nobody can answer here"),
        (("calibrate", "nothing", "--yes"), 1, "no instance in pool nothing"),
        (("calibrate", "sim", "--instance", "x", "--yes"), 1, "no instance x in pool sim"),
        (("calibrate", "sim", "--tpot-ms", "0"), 2, "--tpot-ms"),
        (("calibrate", "sim", "--seconds-per-step", "-1"), 2, "--seconds-per-step"),
        (("calibrate", "sim", "--yes", "--engine-key", "wrong"), 1, "refuses the key"),
    ],
)
def test_what_cannot_be_measured_is_told(
    taas: Taas, engine: SimEngine, words: tuple[str, ...], status: int, said: str
) -> None:
    assert said in run(*words, exit_code=status).output
    assert engine.counters()["generation"] == 0


def test_without_the_engines_key_it_says_where_to_get_it(
    taas: Taas, engine: SimEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("TAAS_REDIS_URL")
    monkeypatch.setenv("TAAS_HOME", str(tmp_path))
    assert "TAAS_ENGINE_KEY" in run("calibrate", "sim", *QUICK, exit_code=1).stderr
    monkeypatch.setenv("TAAS_REDIS_URL", "redis://127.0.0.1:1/0")
    assert "TAAS_REDIS_URL" in run("calibrate", "sim", *QUICK, exit_code=1).stderr


def generations(engine: SimEngine) -> int:
    """How many completions it was asked for. Whoever adds an engine sends an empty request, too."""
    return sum(1 for asked in engine.requests() if asked["path"] == "/v1/completions" and asked["body"])


def signed_by_other_weights(told: Told, admin_url: str) -> str:
    """A contract of a unit, in a pool where a token written weighs far more than the engine will be found
    to need.
    """
    told("tenant", "create", "acme")
    measured = {
        "pool": "sim", "model": "sim", "weights": {"w_in_mu": 1000, "w_cached_mu": 1000,
        "w_out_mu": 9_000_000}, "capacity_units_per_second": 1000,
        "sequences": 2, "tpot_target_ms": 100, "ttft_target_ms": 2000, "hardware": "another",
        "engine_version": "1", "error": "0.01",
    }  # fmt: skip
    key = {"authorization": f"Bearer {ADMIN_KEY}"}
    assert (
        plain_http.post(f"{admin_url}/admin/v1/calibrations", json=measured, headers=key).status_code == 201
    )
    terms = ["--tenant", "acme", "--pool", "sim", "--units", "1", "--until", "1y", "--notice-days", "7"]
    return str(told("contract", "sign", "--yes", *terms)["contract"])
