"""What the kernel says of an engine: its command, its user, every listener of its processes; its weights."""

import hashlib
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.running_engine import Weights, read_processes

# A process that listens on two addresses, with a child that listens on a third; it says so and waits.
PROGRAM = """
import os, socket, sys
held = [socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6)]
if os.fork() == 0:
    held = [socket.create_server(("127.0.0.2", 0))]
for each in held:
    os.write(1, "{} {}\\n".format(*each.getsockname()[:2]).encode())
sys.stdin.read()
"""
QUIET = ("--no-enable-log-requests", "--no-enable-log-outputs")
ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "False"}


class Listening:
    """It, and where it says that it listens."""

    def __init__(self, *words: str, **environment: str) -> None:
        self.command = (sys.executable, "-c", PROGRAM, *words)
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,
            text=True,
        )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline().split() for _ in range(3)]
        self.addresses = {f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in lines}

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def quiet() -> Iterator[Listening]:
    started = Listening(*QUIET, **ENVIRONMENT)
    yield started
    started.end()


def test_command_user_and_listeners_are_the_kernels(quiet: Listening) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        facts = read_processes(quiet.process.pid)
        assert f"127.0.0.1:{ours.getsockname()[1]}" not in facts.listening
    assert facts.command == quiet.command
    assert facts.os_user == f"{pwd.getpwuid(os.getuid()).pw_name} ({os.getuid()})"
    assert set(facts.listening) == quiet.addresses
    assert len(facts.listening) == 3
    assert not facts.requests_logged


def test_what_listens_as_a_private_models_user_is_named_also_outside_the_group(quiet: Listening) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as stray,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(("127.0.0.1", 0))
        strays = {
            f"127.0.0.1:{stray.getsockname()[1]}",
            f"udp 127.0.0.1:{datagrams.getsockname()[1]}",
        }
        assert quiet.addresses | strays <= set(read_processes(quiet.process.pid, os.getuid()).listening)
        assert not strays & set(read_processes(quiet.process.pid, os.getuid() + 1).listening)


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (QUIET[:1], ENVIRONMENT),
        (QUIET[1:], ENVIRONMENT),
        (QUIET, ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "DEBUG"}),
        (QUIET, {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "True"}),
    ],
)
def test_an_engine_that_may_log_requests_is_said_to(
    words: tuple[str, ...], environment: dict[str, str]
) -> None:
    started = Listening(*words, **environment)
    assert read_processes(started.process.pid).requests_logged
    started.end()


def test_of_an_engine_that_is_gone_nothing_is_said(quiet: Listening) -> None:
    quiet.end()
    with pytest.raises(OSError, match="No such file"):
        read_processes(quiet.process.pid)


def test_weights_are_read_again_when_a_file_has_changed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "sub" / "config.json").write_bytes(b"{}")
    weights = Weights(tmp_path)
    assert weights.digests() == {
        "model.safetensors": hashlib.sha256(b"weights").hexdigest(),
        "sub/config.json": hashlib.sha256(b"{}").hexdigest(),
    }
    (tmp_path / "model.safetensors").write_bytes(b"others!")
    (tmp_path / "sub" / "config.json").unlink()
    assert weights.digests() == {"model.safetensors": hashlib.sha256(b"others!").hexdigest()}
