"""Which ports are free, and who has one that is not."""

import socket

import psutil

from deploy.local.progress import StepFailed
from deploy.local.settings import HOST


def require_free(port: int, variable: str, host: str = HOST) -> None:
    """StepFailed when something listens on it: names the port, its owner, and the setting that moves ours."""
    with socket.socket() as probe:
        # As a server binds: connections of the last one in TIME_WAIT do not matter, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return
        except OSError as exc:
            why = (
                f"port {port} is taken by {owner(port)}"
                if exc.errno in (48, 98)
                else f"port {port}: {exc.strerror}"
            )
    raise StepFailed(why, f"Stop that program, or choose another port: {variable}=… make up")


def answers(port: int, host: str = HOST) -> bool:
    """Whether something takes connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def owner(port: int) -> str:
    """The program that listens on it, as far as we may see."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f"process {process.pid}, {' '.join(process.cmdline())[:120] or process.name()}"
    except psutil.Error:
        pass
    return "a process of another user"
