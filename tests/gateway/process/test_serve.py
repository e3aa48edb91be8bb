"""Gateways as processes: started, asked, killed, told to stop."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gateway.process.serve import SETTLES_LOST
from loadtest import plain_http
from loadtest.forked import Program
from tests.fixtures.forked import start_module
from tests.fixtures.gateway import free_ports
from tests.gateway.listening import read_all, until

TINY = "tests.gateway.tiny_gateway"


class Gateway:
    """A gateway's process, its ports and what it logged."""

    def __init__(self, process: Program, log: Path) -> None:
        self.process = process
        self._log = log
        self.port = 0

    def logged(self, message: str) -> list[dict[str, Any]]:
        """The lines with this message; every line is JSON."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [line for line in lines if line["message"] == message]

    def wait_ready(self, processes: int) -> None:
        until(
            lambda: len(self.logged("serving")) >= processes or self.process.poll() is not None, "ready", 30
        )
        self.port = self.logged("listening")[0]["port"]

    def get(self, path: str) -> httpx.Response:
        """On a connection of its own, so that the kernel picks a process each time."""
        return plain_http.get(
            f"http://127.0.0.1:{self.port}{path}", timeout=10, headers={"connection": "close"}
        )

    def metrics_ports(self) -> list[int]:
        """One of each process that lives."""
        living = {self.process.pid, *self.children()}
        return [line["metrics_port"] for line in self.logged("listening") if line["process"] in living]

    def metric(self, series: str) -> float:
        """`sum(SERIES)` over all processes."""
        total = 0.0
        for port in self.metrics_ports():
            with contextlib.suppress(httpx.TransportError):  # killed, or about to listen
                text = plain_http.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
                found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
                total += 0.0 if found is None else float(found[1])
        return total

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def stream(self, query: str = "") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        sock.sendall(f"GET /stream{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = b""
        while b"data: x" not in received:
            received += sock.recv(4096)
        return sock

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextlib.contextmanager
def gateway(
    tmp_path: Path, processes: int, factory: str = "build_app", *, ready: bool = True, **settings: str
) -> Iterator[Gateway]:
    log = tmp_path / "log"
    environment = os.environ | {
        "TAAS_HOME": str(tmp_path / "home"),
        "TAAS_GATEWAY_PORT": "0",
        "TAAS_GATEWAY_METRICS_PORT": "0",
        "TAAS_GATEWAY_PROCESSES": str(processes),
        "TAAS_SERVICE_KEY": "secret-service-key",
        "TAAS_UNREADY_S": "0",
        **settings,
    }
    process = start_module(TINY, factory, environment=environment, log=log)
    running = Gateway(process, log)
    try:
        if ready:
            running.wait_ready(processes)
        yield running
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("processes", [1, 2])
def test_fault_41_streams_run_to_their_end_after_sigterm_and_the_status_is_0(
    tmp_path: Path, processes: int
) -> None:
    with gateway(tmp_path, processes) as running:
        streams = [running.stream() for _ in range(20)]
        running.process.send_signal(signal.SIGTERM)
        for sock in streams:
            assert read_all(sock).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            sock.close()
        assert running.process.wait(10) == 0
        with pytest.raises(httpx.ConnectError):
            running.get("/")


@pytest.mark.parametrize("processes", [1, 2])
def test_fault_41_streams_that_outlast_the_drain_end_with_an_error(tmp_path: Path, processes: int) -> None:
    with gateway(tmp_path, processes, TAAS_DRAIN_S="0.5") as running, running.stream("?forever") as sock:
        running.process.send_signal(signal.SIGTERM)
        assert b'data: {"error"' in read_all(sock)
        assert running.process.wait(10) == 0


def test_fault_41_readiness_goes_and_no_connection_is_taken_while_streams_drain(tmp_path: Path) -> None:
    with gateway(tmp_path, 1, TAAS_DRAIN_S="2") as running, running.stream("?forever") as sock:
        assert running.get("/readyz").status_code == 200
        running.process.send_signal(signal.SIGTERM)
        until(lambda: running.logged("Shutting down"), "the drain to begin")
        with pytest.raises(httpx.TransportError):
            running.get("/readyz")
        assert b'data: {"error"' in read_all(sock)


@pytest.mark.parametrize("processes", [1, 2])
def test_connections_are_taken_for_a_while_after_readiness_has_gone(tmp_path: Path, processes: int) -> None:
    with gateway(tmp_path, processes, TAAS_UNREADY_S="3") as running:
        running.process.send_signal(signal.SIGTERM)
        until(lambda: len(running.logged("not ready any more")) == processes, "readiness to go")
        told, served = running.get("/readyz"), running.get("/count")
        assert (told.status_code, served.status_code) == (503, 200)
        assert served.headers["connection"] == "close"
        assert not running.logged("Shutting down")
        assert running.process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            running.get("/readyz")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_that_lost_settles_ends_with_a_status_of_its_own(tmp_path: Path, processes: int) -> None:
    with gateway(tmp_path, processes) as running:
        assert running.get("/lose").status_code == 200
        assert running.stop() == SETTLES_LOST


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, processes: int) -> None:
    with gateway(tmp_path, processes, TAAS_DRAIN_S="600") as running, running.stream("?forever") as sock:
        children = running.children()
        running.process.send_signal(signal.SIGTERM)
        until(lambda: running.logged("Shutting down"), "the drain to begin")
        assert running.stop() == 128 + signal.SIGTERM
        until(lambda: not any(psutil.pid_exists(child) for child in children), "all processes to be gone")
        with contextlib.suppress(ConnectionResetError):
            read_all(sock)


@pytest.mark.parametrize("processes", [1, 2])
def test_interrupt_stops_it_in_order(tmp_path: Path, processes: int) -> None:
    with gateway(tmp_path, processes) as running:
        assert running.stop(signal.SIGINT) == 0


def test_every_process_serves_and_has_the_settings(tmp_path: Path) -> None:
    with gateway(tmp_path, 3) as running:
        seen: set[int] = set()
        until(
            lambda: seen.add(running.get("/").json()["process"]) or len(seen) == 3,
            "each process to answer once",
        )
        assert seen == set(running.children())
        assert running.get("/").json()["key"] == "secret-service-key"
        assert "secret-service-key" not in running._log.read_text()


def test_every_process_has_a_page_of_its_own_and_a_dead_ones_successor_takes_its_place(
    tmp_path: Path,
) -> None:
    first_port = free_ports(2)
    with gateway(tmp_path, 2, TAAS_GATEWAY_METRICS_PORT=str(first_port)) as running:
        counted: Counter[int] = Counter()
        while len(counted) < 2 or counted.total() < 20:
            counted[running.get("/count").json()["process"]] += 1
        assert sorted(running.metrics_ports()) == [first_port, first_port + 1]
        assert running.metric('taas_refusals_total{which="tiny"}') == counted.total()
        assert running.metric("taas_gateway_processes") == 2
        victim, survivor = counted
        os.kill(victim, signal.SIGKILL)
        until(lambda: running.metric("taas_gateway_process_deaths_total") == 1, "the death to be counted", 20)
        assert running.metric("taas_gateway_processes") == 2
        assert sorted(running.metrics_ports()) == [first_port, first_port + 1]
        assert running.metric('taas_refusals_total{which="tiny"}') == counted[survivor]


@pytest.mark.parametrize("processes", [1, 3])
def test_a_metrics_port_that_is_taken_is_said_and_ends_the_gateway(tmp_path: Path, processes: int) -> None:
    first_port = free_ports(processes)
    with socket.create_server(("127.0.0.1", first_port + processes - 1)):
        status, logged = start_in_vain(
            tmp_path, TAAS_GATEWAY_METRICS_PORT=str(first_port), TAAS_GATEWAY_PROCESSES=str(processes)
        )
    assert status == 1
    assert logged["message"] == "cannot listen for metrics"
    assert (logged["setting"], logged["port"]) == ("TAAS_GATEWAY_METRICS_PORT", first_port + processes - 1)


def start_in_vain(tmp_path: Path, **settings: str) -> tuple[int, dict[str, Any]]:
    """The exit status of a gateway that cannot start, and the one line that it logs."""
    log = tmp_path / "in_vain"
    environment = os.environ | {
        "TAAS_HOME": str(tmp_path / "home_in_vain"),
        "TAAS_GATEWAY_PORT": "0",
        "TAAS_GATEWAY_METRICS_PORT": "0",
        **settings,
    }
    status = start_module(TINY, "build_app", environment=environment, log=log).wait(30)
    return status, json.loads(log.read_text())


def test_gauges_of_a_dead_process_go(tmp_path: Path) -> None:
    with gateway(tmp_path, 2) as running, running.stream("?forever"), running.stream("?forever"):
        assert running.metric("taas_reservations_open") == 2
        for child in running.children():
            os.kill(child, signal.SIGKILL)
        until(lambda: running.metric("taas_gateway_process_deaths_total") == 2, "their successors", 20)
        assert running.metric("taas_reservations_open") == 0


def test_fault_37_killed_process_is_replaced_and_its_port_refuses_nobody(tmp_path: Path) -> None:
    with gateway(tmp_path, 2) as running:
        before = running.children()
        os.kill(before[0], signal.SIGKILL)
        until(lambda: running.logged("process ended"), "the death to be noticed")
        for _ in range(50):
            # waits for the next process where it met the dead one's socket
            assert running.get("/").status_code == 200
        until(lambda: len(running.children()) == 2 and running.children() != before, "a new process", 20)
        (death,) = running.logged("process ended")
        assert death["child"] == before[0]
        assert death["status"] == -signal.SIGKILL
        assert running.stop() == 0


def test_a_process_that_dies_before_it_serves_ends_no_gateway_that_another_serves(tmp_path: Path) -> None:
    with gateway(tmp_path, 2, ready=False) as running:
        until(lambda: len(running.logged("process started")) == 2, "two processes")
        slow, other = (line["child"] for line in running.logged("process started"))
        os.kill(slow, signal.SIGSTOP)
        # It finds both at once: that one has ended, and that the other serves.
        os.kill(running.process.pid, signal.SIGSTOP)
        until(lambda: len(running.logged("serving")) == 1, "the other to serve", 30)
        assert running.logged("serving")[0]["process"] == other
        os.kill(slow, signal.SIGKILL)
        until(lambda: psutil.Process(slow).status() == psutil.STATUS_ZOMBIE, "its end")
        os.kill(running.process.pid, signal.SIGCONT)
        running.wait_ready(2)
        assert running.get("/").status_code == 200
        assert running.stop() == 0


def test_processes_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with gateway(tmp_path, 2) as running:
        children = running.children()
        running.process.kill()
        running.process.wait()
        until(lambda: not any(psutil.pid_exists(child) for child in children), "the orphans to end")


@pytest.mark.parametrize("processes", [1, 2])
def test_application_that_cannot_start_ends_the_gateway(tmp_path: Path, processes: int) -> None:
    with gateway(tmp_path, processes, factory="build_broken_app") as running:
        assert running.process.wait(20) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_port_that_is_taken_is_said_and_ends_the_gateway(tmp_path: Path, processes: int) -> None:
    with gateway(tmp_path, 2) as first:
        status, logged = start_in_vain(
            tmp_path, TAAS_GATEWAY_PORT=str(first.port), TAAS_GATEWAY_PROCESSES=str(processes)
        )
    assert (status, logged["message"], logged["setting"]) == (1, "cannot listen", "TAAS_GATEWAY_PORT")


def test_help_names_every_setting() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "--help"], check=True, capture_output=True, text=True, timeout=30
    )
    for name in (
        "--port",
        "--processes",
        "TAAS_DRAIN_S",
        "TAAS_SERVICE_KEY",
        "TAAS_GATEWAY_PORT",
        "TAAS_LEASE_MS",
    ):
        assert name in done.stdout
