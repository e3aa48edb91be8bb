"""Keeps the processes of one gateway running and passes signals on. It serves nothing itself.

It holds the listening sockets, so that connections that arrive while a process is being replaced wait for the
next one and are not refused.
"""

import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from types import FrameType

from pydantic import SecretStr

from gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

POLL_S = 0.1
RESTART_FIRST_S = 0.1
RESTART_MAX_S = 10.0
# A process that lived this long had started well: its death says nothing about the next one.
HEALTHY_S = 30.0
# Added to the time that a process gives itself, before it is killed.
KILL_AFTER_S = 5.0


@dataclass(slots=True, eq=False, kw_only=True)
class _Slot:
    """The place of one process. Its listening socket outlives the processes in it."""

    index: int
    listener: socket.socket
    process: subprocess.Popen[bytes] | None = None
    # What the process has as its standard input.
    channel: socket.socket | None = None
    deaths: int = 0
    started_at: float = 0.0
    restart_at: float = 0.0
    failures: int = 0


class Supervisor:
    """`run` returns the exit status: 0 after an orderly stop, or the first process's status if none ever came
    up.
    """

    def __init__(self, settings: GatewaySettings, factory: str, sockets: list[socket.socket]) -> None:
        self._settings = settings
        self._given = {"factory": factory, "settings": _plain(settings)}
        self._slots = [_Slot(index=index, listener=sock) for index, sock in enumerate(sockets)]
        self._signals: list[int] = []
        self._came_up = False

    def run(self) -> int:
        """Serve until a signal."""
        before = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            status = self._keep_running()
            stopped = self._stop()
            return status or stopped
        finally:
            self._kill_rest()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _keep_running(self) -> int:
        while not self._signals:
            now = time.monotonic()
            for slot in self._slots:
                if slot.process is None:
                    if now >= slot.restart_at:
                        self._start(slot)
                elif slot.process.poll() is not None:
                    # If any process serves, the death of one does not end the gateway.
                    self._came_up = self._came_up or any(
                        _serves(each) for each in self._slots if each.process
                    )
                    status = self._bury(slot, slot.process)
                    if not self._came_up:
                        log.error("no process came up", extra={"status": status})
                        return status or 1
            time.sleep(POLL_S)
        return 0

    def _start(self, slot: _Slot) -> None:
        slot.started_at = time.monotonic()
        number = slot.listener.fileno()
        slot.channel, its = socket.socketpair()
        with its:
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway.process.serve_child", str(number)],
                stdin=its.fileno(),
                pass_fds=[number],
                # A terminal's ^C and a signal to the whole group reach only the supervisor, which passes them
                # on once.
                start_new_session=True,
            )
        metrics_port = self._settings.metrics_ports[slot.index]
        given = self._given | {"metrics_port": metrics_port, "deaths": slot.deaths}
        with contextlib.suppress(
            OSError
        ):  # it ended before it got its settings: `poll` will report that, too
            slot.channel.sendall(json.dumps(given).encode() + b"\n")
        slot.channel.setblocking(False)
        slot.process = process
        log.info("process started", extra={"slot": slot.index, "child": process.pid})

    def _bury(self, slot: _Slot, process: subprocess.Popen[bytes]) -> int:
        """Note a process that has ended unexpectedly, and plan the next one."""
        status = process.returncode
        now = time.monotonic()
        slot.failures = 0 if now - slot.started_at > HEALTHY_S else slot.failures + 1
        delay_s = min(RESTART_MAX_S, RESTART_FIRST_S * 2 ** min(slot.failures, 10))
        slot.restart_at = now + delay_s
        self._forget(slot)
        slot.deaths += 1
        log.error(
            "process ended",
            extra={"slot": slot.index, "child": process.pid, "status": status, "restart_in_s": delay_s},
        )
        return status

    def _stop(self) -> int:
        """Signal every process once, and wait for as long as they may take. A second signal ends the wait."""
        settings = self._settings
        heard = len(self._signals)
        for slot in self._slots:
            slot.listener.close()
            if slot.process is not None:
                slot.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + settings.stop_s + KILL_AFTER_S
        status = 0
        while any(slot.process is not None for slot in self._slots):
            if len(self._signals) > heard:
                return 128 + self._signals[-1]
            if time.monotonic() > deadline:
                log.error("processes did not end in time and are killed")
                return 1
            for slot in self._slots:
                if slot.process is not None and slot.process.poll() is not None:
                    if (
                        slot.process.returncode != -signal.SIGTERM
                    ):  # signalled before it could handle that: nothing was open
                        status = status or abs(slot.process.returncode)
                    self._forget(slot)
            time.sleep(POLL_S)
        return status

    def _kill_rest(self) -> None:
        for slot in self._slots:
            if slot.process is not None:
                slot.process.kill()
                slot.process.wait()
                self._forget(slot)

    def _forget(self, slot: _Slot) -> None:
        assert slot.channel is not None
        slot.channel.close()
        slot.process = slot.channel = None


def _serves(slot: _Slot) -> bool:
    """Whether its process has said that it serves, even if it has ended since."""
    assert slot.channel is not None
    with contextlib.suppress(OSError):
        return bool(slot.channel.recv(1))
    return False


def _plain(settings: GatewaySettings) -> dict[str, str | float | None]:
    """The settings as JSON, secrets included: for a pipe to a process of ours, nothing else."""
    plain: dict[str, str | float | None] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        plain[name] = value if value is None or isinstance(value, int | float) else str(value)
    return plain
