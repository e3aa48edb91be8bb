"""A private model on real vLLM, for an auditor: an engine of its own under an OS user of its own, evidence
that can be checked offline, and nothing kept of what its owner sends and gets.
"""

import base64
import copy
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
import redis

from billing.wire.evidence import make_key, read_private_key, sign
from loadtest import plain_http
from serving.catalogue import known_models
from serving.private_user import NUMBERS
from tests.fixtures.gateway import wait_until
from tests.fixtures.readable_vllm import readable_python
from tests.fixtures.retained import (
    Blob,
    Needles,
    command_lines,
    elsewhere,
    files_in,
    keys_of_redis,
    own_temporary_files,
    rows_of_postgres,
)
from tests.fixtures.stack import MODEL, PRICE, VLLM_PYTHON, Stack, empty_stack, kill_9, model_folder

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a process another user"),
]

NAME, UNKNOWN, INSTANCE = "acme-private", "acme-privata", "private"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Private:
    """It runs. `key` is its owner's, `stranger` another tenant's."""

    stack: Stack
    folder: Path
    owner: str
    key: str
    stranger: str
    began: float

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    def entry(self) -> dict[str, Any] | None:
        raw = self.stack.redis.hget("taas:instances", INSTANCE)
        return None if raw is None else json.loads(str(raw))

    def evidence(self, name: str) -> Path:
        """As it is now, in a file."""
        path = self.folder / f"{name}.json"
        path.write_text(self.stack.taas("instance", "evidence", INSTANCE))
        return path

    def verify(self, *words: str | Path) -> tuple[int, str]:
        """Exit status and what it says; offline: it is told no address of anything."""
        command = [str(Path(sys.executable).with_name("taas")), "evidence", "verify", *map(str, words)]
        run = subprocess.run(
            command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"}
        )
        return run.returncode, run.stdout + run.stderr


@pytest.fixture(scope="module")
def private(postgres_server: str) -> Iterator[Private]:
    began = time.time() - 1
    with ExitStack() as ending:
        # Others may pass through it, as where something is installed.
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="taas-private-")))
        folder.chmod(0o755)
        home = folder / "home"
        home.mkdir()
        # All of its folder is searched.
        ending.enter_context(own_temporary_files(home / "tmp"))
        shutil.copytree(model_folder(), folder / "weights")
        evidence_key = folder / "evidence.key"
        evidence_key.touch(0o600)
        evidence_key.write_text(make_key())
        stack = empty_stack(home, postgres_server, ending)
        stack.start_billing(TAAS_EVIDENCE_KEY_FILE=str(evidence_key))
        owner, key = stack.new_tenant()
        _, stranger = stack.new_tenant()
        fields = known_models()[MODEL].entry_fields() | {"name": NAME, "owner": owner}
        stack.cell = stack.admin("POST", "models", **fields)["cell"]
        stack.admin("POST", "prices", model=NAME, **PRICE)
        python = readable_python(VLLM_PYTHON, folder)
        (folder / "weights.sha256").write_text(_sums(folder / "weights"))

        def start() -> None:
            stack.start(
                "worker", "serving", NAME, "--instance", INSTANCE, "--path", str(folder / "weights"),
                "--vllm-python", str(python), "--weights-sha256", str(folder / "weights.sha256"),
                *("--engine-arg=--enable-auto-tool-choice", "--engine-arg=--tool-call-parser=hermes"),
                TAAS_PRIVATE_USERS=str(folder / "users"), OMP_NUM_THREADS="1",
                # Where a copied Python finds its own library.
                LD_LIBRARY_PATH=str(python.parents[2] / "python" / "lib"),
                TAAS_WORKER_METRICS_PORT_FIRST=str(stack.worker_metrics_port),
            )  # fmt: skip

        # The weights are root's alone at first, and the worker says how to let the model's user read them.
        (folder / "weights" / "model.safetensors").chmod(0o600)
        start()
        assert stack.processes["worker"].wait(60) == 1
        told = re.search(r"`(chgrp -R .*)` lets it read this", stack.log("worker"))
        assert told is not None, stack.log("worker")
        subprocess.run(["/bin/sh", "-c", told[1]], check=True)
        start()
        made = Private(stack=stack, folder=folder, owner=owner, key=key, stranger=stranger, began=began)
        stack.gateway = stack.make_gateway(TAAS_LOG_LEVEL="debug")
        stack.gateway.start()

        def served() -> bool:
            assert stack.processes["worker"].poll() is None, stack.log("worker")
            with stack.gateway.client(key) as client:
                return client.post("/tokenize", json={"model": NAME, "prompt": "x"}).status_code == 200

        wait_until(served, "engine", timeout_s=240)
        wait_until(lambda: bool(stack.redis.hexists("taas:evidence", INSTANCE)), "evidence")
        (folder / "evidence.pub").write_text(stack.taas("evidence", "key"))
        yield made


def _sums(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = ((hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(folder)) for path in files)
    return "".join(f"{digest}  {name}\n" for digest, name in digests)


def test_its_owner_is_answered_and_to_others_it_does_not_exist(private: Private) -> None:
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
    with private.stack.gateway.client(private.key) as owner:
        answer = owner.post(CHAT, json={"model": NAME, **body})
        assert answer.status_code == 200, answer.text
        assert [each["id"] for each in owner.get("/v1/models").json()["data"]] == [NAME]
    with private.stack.gateway.client(private.stranger) as stranger:
        theirs, unknown = (stranger.post(CHAT, json={"model": name, **body}) for name in (NAME, UNKNOWN))
        assert stranger.get("/v1/models").json()["data"] == []
    assert (theirs.status_code, unknown.status_code) == (404, 404)
    assert theirs.text.replace(NAME, UNKNOWN) == unknown.text


def test_the_evidence_is_full_and_true_and_verified_offline(private: Private) -> None:
    path = private.evidence("now")
    assert private.verify(path, "--key", private.folder / "evidence.pub") == (
        0,
        f"{path} is as it was signed.\n",
    )
    said = json.loads(path.read_text())["evidence"]
    entry = private.entry()
    assert entry is not None
    sums = {
        name: digest for digest, name in (line.split("  ") for line in _sums(private.weights).splitlines())
    }
    assert said["weights"]["sha256"] == sums
    process = said["process"]
    number = int(process["os_user"])
    assert number in NUMBERS
    assert process["own_user"] is True
    assert (private.stack.home / "private" / NAME).stat().st_uid == number
    assert process["engine_version"].startswith("0.")
    assert "--no-enable-log-requests" in process["command"]
    assert str(private.weights) in process["command"]
    assert entry["url"].removeprefix("http://") in process["listening"]
    assert all(address.startswith("127.0.0.1:") for address in process["listening"])
    assert said["logging"] == {"requests_logged": False, "takes_batches": False}
    assert said["callers"] == {"owner": private.owner, "visible_to": [private.owner], "status": "active"}
    assert said["instance"]["epoch"] == entry["epoch"]
    assert 0 < said["instance"]["since_ms"] <= said["issued"]["read_ms"] <= said["issued"]["at_ms"]
    assert entry["key"] not in path.read_text()


def test_each_of_ten_tamperings_is_found(private: Private) -> None:
    good = json.loads(private.evidence("good").read_text())
    digests = good["evidence"]["weights"]["sha256"]
    other_key = read_private_key(make_key())

    def changed(section: str, name: str, value: Any) -> dict[str, Any]:
        document = copy.deepcopy(good)
        document["evidence"][section][name] = value
        return document

    found: dict[str, str] = {}
    signature = base64.b64encode(bytes(64)).decode()
    tampered = {
        "a weight's digest": changed("weights", "sha256", digests | {min(digests): "0" * 64}),
        "a listener less": changed("process", "listening", []),
        "another OS user": changed("process", "os_user", "60999"),
        "a flag of the command": changed("process", "command", good["evidence"]["process"]["command"][:-1]),
        "logging": changed("logging", "requests_logged", True),
        "another caller": changed("callers", "visible_to", [private.owner, "ten_other"]),
        "since when": changed("instance", "since_ms", 1),
        "a contract": {**good, "evidence": {**good["evidence"], "contracts": [{"contract": "con_x"}]}},
        "a section less": {**good, "evidence": {k: v for k, v in good["evidence"].items() if k != "weights"}},
        "a section more": {**good, "evidence": {**good["evidence"], "promise": {"kept": True}}},
        "the signature": {**good, "signature": signature},
        "another signer": sign(changed("process", "os_user", "0")["evidence"], other_key),
    }  # fmt: skip
    for what, document in tampered.items():
        path = private.folder / "tampered.json"
        path.write_text(json.dumps(document))
        status, said = private.verify(path, "--key", private.folder / "evidence.pub")
        assert status == 1, what
        found[what] = said.strip()
    print("\n".join(f"{what}: {said}" for what, said in found.items()))
    assert len(set(found.values())) >= 8


# As the model's user, but none of its engine's processes.
_LISTENS = """
import socket, sys
held = socket.create_server(("127.0.0.1", 0))
print(held.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_a_changed_weight_a_listener_and_another_caller_show_as_differences(private: Private) -> None:
    """Of the thing itself, not of the document: the new evidence is good, and says something else."""
    earlier, key = private.evidence("earlier"), private.folder / "evidence.pub"
    file = private.weights / "tokenizer_config.json"
    content = file.read_bytes()
    process = json.loads(earlier.read_text())["evidence"]["process"]
    number, python = int(process["os_user"]), Path(process["command"][0])
    with ExitStack() as undo:
        listening = undo.enter_context(
            subprocess.Popen(
                [str(python), "-c", _LISTENS], user=number, group=number, extra_groups=(), cwd="/", text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env={"LD_LIBRARY_PATH": str(python.parents[2] / "python" / "lib")},
            )
        )  # fmt: skip
        assert listening.stdin is not None
        assert listening.stdout is not None
        undo.callback(listening.stdin.close)
        port = listening.stdout.readline().strip()
        undo.callback(file.write_bytes, content)
        file.write_bytes(content + b" ")
        undo.callback(_let_see, private.stack, private.owner)
        _let_see(private.stack, None)
        wanted = hashlib.sha256(file.read_bytes()).hexdigest()
        wait_until(lambda: wanted in private.evidence("later").read_text(), "evidence of the changed file")
        status, said = private.verify(private.folder / "later.json", "--key", key, "--against", earlier)
    assert status == 1
    assert f"weights.sha256.{file.name}: was " in said
    assert f'process.listening: now also "127.0.0.1:{port}"' in said
    assert 'callers.owner: was "ten_' in said
    assert "callers.visible_to" in said
    # What everybody may use takes batches, too.
    assert "logging.takes_batches: was false, is true" in said
    assert len(said.splitlines()) == 5, said


def _let_see(stack: Stack, owner: str | None) -> None:
    """What nobody can do by the admin API."""
    with psycopg.connect(stack.database_url.replace("+psycopg", "", 1), autocommit=True) as connection:
        connection.execute(
            "UPDATE model SET owner = %s, visible = %s WHERE name = %s",
            [owner, "tenants" if owner else "everyone", NAME],
        )


def test_wrong_weights_do_not_start_and_what_serves_goes_on(private: Private) -> None:
    entry = private.entry()
    assert entry is not None
    (private.folder / "wrong.sha256").write_text(f"{'0' * 64}  model.safetensors\n")
    private.stack.start(
        "second", "serving", NAME, "--instance", "second", "--path", str(private.weights),
        "--weights-sha256", str(private.folder / "wrong.sha256"), "--vllm-python",
        str(private.folder / "environment" / "bin" / "python")
        if (private.folder / "environment").exists() else str(VLLM_PYTHON),
        TAAS_PRIVATE_USERS=str(private.folder / "users"),
    )  # fmt: skip
    assert private.stack.processes["second"].wait(60) == 1
    assert "are not those of --weights-sha256: " in private.stack.log("second")
    del private.stack.processes["second"]
    with private.stack.gateway.client(private.key) as owner:
        assert owner.post("/tokenize", json={"model": NAME, "prompt": "x"}).status_code == 200
    now = private.entry()
    assert now is not None
    assert now["epoch"] == entry["epoch"]


def test_nothing_is_kept_of_what_its_owner_sends_and_gets(private: Private) -> None:
    stack, needles = private.stack, Needles()
    core = f"zq{secrets.token_hex(8)}"
    needles.add("a word", core)
    with stack.gateway.client(private.key, timeout_s=120) as client:
        ids = client.post("/tokenize", json={"model": NAME, "prompt": f" {core}"}).json()["tokens"]
        needles.add_ids("a word", ids)
        for stream in (False, True):
            _be_answered(client, core, ids, stream=stream)
        _be_refused(client, core)
        for end in ("leave", "kill"):
            body = _body(core, stream=True, max_tokens=400, ignore_eos=True)
            with client.stream("POST", CHAT, json=body) as answer:
                next(answer.iter_bytes())
                if end == "kill":
                    stack.gateway.kill()
    stack.gateway.start()
    wait_until(lambda: not stack.open_ids(), "end of open requests", timeout_s=60)
    assert needles.hits(_everything_stored(private)) == []


def test_kill_9_of_its_worker_leaves_nothing_of_its_engine(private: Private) -> None:
    """With the process that vLLM computes in by itself on a CPU. The last of these tests."""
    family = [psutil.Process(pid) for pid in private.stack.worker_family()]
    assert any(process.cmdline()[0] == "VLLM::Worker" for process in family)
    kill_9(private.stack.processes["worker"].pid)
    assert psutil.wait_procs(family, timeout=60)[1] == []


def _body(core: str, **fields: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": f"Repeat: {core} {core}"}], **fields}


def _be_answered(client: httpx.Client, core: str, ids: list[int], *, stream: bool) -> None:
    """With the word in every place that takes text, and said by the model itself."""
    arguments = {"type": "object", "properties": {"text": {"enum": [core]}}, "required": ["text"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": arguments}}
    called = {"name": "f", "arguments": json.dumps({"text": core})}
    history = [
        *_body(core)["messages"],
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": called}]},
        {"role": "tool", "tool_call_id": "c", "content": core},
    ]
    schema = {"name": "n", "schema": arguments, "strict": True}
    said_by_the_model: list[dict[str, Any]] = [
        {"structured_outputs": {"choice": [core]}},
        {"response_format": {"type": "json_schema", "json_schema": schema}},
    ]
    for fields in (
        *said_by_the_model, {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"max_tokens": 8}, {"max_tokens": 8, "messages": history, "tools": [tool]},
        {"max_tokens": 8, "user": core, "metadata": {"k": core}, "prompt_cache_key": core, core: core},
    ):  # fmt: skip
        body = _body(core, stream=stream, max_tokens=60) | fields
        answer = client.post(CHAT, json=body, headers={"x-session-id": core, "user-agent": core})
        assert answer.status_code == 200, answer.text
        if fields in said_by_the_model:
            assert core in ("".join(_pieces(answer.text)) if stream else answer.text), answer.text
    for path, fields in (
        ("/v1/completions", {"prompt": f"{core} " * 40, "max_tokens": 8}),
        ("/v1/completions", {"prompt": ids, "max_tokens": 8}),
        ("/v1/responses", {"input": core, "max_output_tokens": 16}),
        ("/v1/messages", _body(core, max_tokens=8)),
    ):  # fmt: skip
        answer = client.post(path, json={"model": NAME, "stream": stream, **fields})
        assert answer.status_code == 200, answer.text


def _be_refused(client: httpx.Client, core: str) -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"temperature": core}, {"max_tokens": 10**9}, {"logit_bias": {core: 1}}, {"model": core},
        {"messages": [{"role": "user", "content": f"{core} " * 3000}]},
        {"structured_outputs": {"regex": f"({core}"}},
    )  # fmt: skip
    for fields in changes:
        refused = client.post(CHAT, json=_body(core) | fields)
        assert 400 <= refused.status_code < 500, refused.text


def _everything_stored(private: Private) -> Iterator[Blob]:
    stack = private.stack
    with redis.Redis(port=stack.valkey.port) as raw:
        raw.config_set("rdbcompression", "no")
        raw.save()
        yield from keys_of_redis(raw)
    # The home, temporary files and Redis's files are in it, and copies of what was there before.
    yield from files_in(private.folder, since=private.began)
    yield from elsewhere(since=private.began)
    yield from rows_of_postgres(stack.database_url.replace("+psycopg", "", 1))
    yield from command_lines([stack.processes["worker"].pid, *stack.worker_family()])
    entry = private.entry()
    assert entry is not None
    headers = {"authorization": f"Bearer {entry['key']}"}
    page = plain_http.get(f"{entry['url']}/metrics", headers=headers, timeout=10).text
    for where, text in {**stack.pages(), "metrics of the engine": page}.items():
        yield where, text.encode()


def _pieces(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                yield choice["delta"].get("content") or ""
                for call in choice["delta"].get("tool_calls") or ():
                    yield call["function"].get("arguments") or ""
