"""`up`, `status` and `down` as people use them: on the simulated engine for every turn, on real vLLM once."""

import fcntl
import json
import os
import re
import socket
import stat

import httpx
import pytest

from deploy.local.credentials import read_env
from loadtest import plain_http
from tests.deploy.conftest import Home
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import free_ports
from tests.fixtures.valkey import free_port


def served(output: str) -> dict[str, int]:
    """What the bill on the screen says: tokens by kind, and what the engine counted itself."""
    found = dict(re.findall(r"^    (input|cached input|output|total) +(\d+)", output, re.MULTILINE))
    counted = re.search(
        r"engine's own counters: (\d+) prompt \+ (\d+) generation tokens meanwhile; audit residual (\d+)",
        output,
    )
    assert counted is not None, output
    prompt, generation, residual = map(int, counted.groups())
    return {name: int(tokens) for name, tokens in found.items()} | {
        "counted_prompt": prompt,
        "counted_output": generation,
        "residual": residual,
    }


def check_served(output: str) -> None:
    bill = served(output)
    assert bill["output"] > 0
    assert bill["input"] + bill["cached input"] == bill["counted_prompt"]
    assert bill["output"] == bill["counted_output"]
    assert bill["residual"] == 0


@pytest.fixture
def on_sim(home: Home, engine: SimEngine) -> Home:
    home.environment |= {"TAAS_ENGINE_URL": engine.url, "TAAS_ENGINE_KEY": engine.key}
    return home


@pytest.mark.together
def test_up_serves_and_bills_one_request_and_can_be_repeated(running: Home) -> None:
    assert running.first_up is not None
    check_served(running.first_up.stdout)
    pids, key = running.pids(), read_env(running.folder / "demo.env")["OPENAI_API_KEY"]
    assert set(pids) == {"valkey", "billing", "gateway", "batch"}

    demo = read_env(running.folder / "demo.env")
    dearer = running.taas("price", "set", "--model", demo["TAAS_MODEL"], "--input", "0.2", "--output", "0.8",
                          "--from", "30d")  # fmt: skip
    assert dearer.returncode == 0, dearer.stderr
    again = running.run("up", **demo)  # in a shell that has sourced the file, as the README says
    assert again.returncode == 0, again.stdout + again.stderr
    check_served(again.stdout)
    assert running.pids() == pids, "what runs is left alone"
    assert "$0.10 in, $0.40 out per million tokens" in again.stdout, "the price of now"
    assert read_env(running.folder / "demo.env")["OPENAI_API_KEY"] == key

    shown = running.run("status", "--json")
    assert shown.returncode == 0
    assert {part["state"] for part in json.loads(shown.stdout)["parts"]} == {"up"}

    assert running.run("down").returncode == 0
    assert running.pids() == {}
    stopped = running.run("status")
    assert stopped.returncode == 1
    assert "gateway     down" in stopped.stdout

    back = running.run("up")
    assert back.returncode == 0, back.stdout + back.stderr
    check_served(back.stdout)
    assert read_env(running.folder / "demo.env")["OPENAI_API_KEY"] == key, "what was stored is there again"


@pytest.mark.together
def test_the_env_file_is_private_and_holds_what_sdks_need(running: Home) -> None:
    path = running.folder / "demo.env"
    values = read_env(path)
    assert set(values) == {
        "OPENAI_BASE_URL", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "TAAS_ADMIN_URL",
        "TAAS_ADMIN_KEY", "TAAS_MODEL",
    }  # fmt: skip
    for private in (path, running.folder / "services.env", running.folder / "secrets.json"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    logs = "".join(log.read_text() for log in (running.folder / "logs").iterdir())
    for name in ("OPENAI_API_KEY", "TAAS_ADMIN_KEY"):
        assert values[name] not in logs
    models = plain_http.get(
        f"{values['OPENAI_BASE_URL']}/models", headers={"authorization": f"Bearer {values['OPENAI_API_KEY']}"}
    )
    assert [model["id"] for model in models.json()["data"]] == [values["TAAS_MODEL"]]


@pytest.mark.together
def test_up_starts_again_what_died(running: Home) -> None:
    before = running.pids()
    os.kill(before["gateway"], 9)
    assert running.run("up").returncode == 0
    after = running.pids()
    assert after["gateway"] != before["gateway"]
    assert after["billing"] == before["billing"]


@pytest.mark.together
def test_up_with_another_port_moves_the_process(running: Home) -> None:
    port = free_port()
    moved = running.run("up", TAAS_GATEWAY_PORT=str(port))
    assert moved.returncode == 0, moved.stdout
    assert read_env(running.folder / "demo.env")["OPENAI_BASE_URL"] == f"http://127.0.0.1:{port}/v1"
    with pytest.raises(httpx.ConnectError):
        plain_http.get(f"http://127.0.0.1:{running.ports['GATEWAY_PORT']}/healthz")


def test_up_uses_the_stores_that_are_there(on_sim: Home, valkey_url: str, database_url: str) -> None:
    run = on_sim.run("up", TAAS_REDIS_URL=valkey_url, TAAS_DATABASE_URL=database_url)
    assert run.returncode == 0, run.stdout + run.stderr
    check_served(run.stdout)
    assert set(on_sim.pids()) == {"billing", "gateway", "batch"}
    assert not (on_sim.folder / "postgres").exists()


@pytest.mark.parametrize("variable", ["TAAS_GATEWAY_PORT", "TAAS_GATEWAY_METRICS_PORT"])
def test_a_taken_port_is_told_with_its_owner_and_the_way_out(on_sim: Home, variable: str) -> None:
    """Also where it is the last process's metrics."""
    first = free_ports(2)
    port = first + (variable == "TAAS_GATEWAY_METRICS_PORT")
    with socket.create_server(("127.0.0.1", port)):
        run = on_sim.run("up", TAAS_GATEWAY_PROCESSES="2", **{variable: str(first)})
    assert run.returncode == 1
    assert re.search(rf"port {port} is taken by process \d+", run.stdout)
    assert f"{variable}=" in run.stdout
    assert on_sim.pids() == {}, "it is told before anything is started"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"TAAS_ADMIN_PORT": "many"}, "TAAS_ADMIN_PORT"),
        ({"TAAS_REDIS_URL": "redis://127.0.0.1:1/0"}, "TAAS_REDIS_URL does not answer"),
        ({"TAAS_DATABASE_URL": "postgresql://127.0.0.1:1/x"}, "TAAS_DATABASE_URL does not answer"),
        ({"TAAS_ENGINE_KEY": "wrong"}, "give its key in TAAS_ENGINE_KEY"),
    ],
)
def test_what_cannot_work_is_told_without_a_traceback(on_sim: Home, wrong: dict[str, str], told: str) -> None:
    run = on_sim.run("up", **wrong)
    assert run.returncode == 1
    assert told in run.stdout
    assert "Traceback" not in run.stdout + run.stderr
    assert "billing" not in on_sim.pids()


def test_two_at_once_do_not_start_everything_twice(on_sim: Home) -> None:
    with (on_sim.folder / "up.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run = on_sim.run("up")
    assert run.returncode == 1
    assert "is at work on" in run.stdout
