"""Which port an engine gets. A port is claimed before the engine, which takes most of a minute to start, listens on it."""

import socket
from contextlib import closing
from typing import Final

_PORTS_TRIED: Final = 200
_HOST: Final = "127.0.0.1"


def claim_port(port_first: int) -> tuple[int, socket.socket]:
    """The first port from `port_first` up on which nothing listens and that no other worker has claimed. The claim is the UDP port of the same
    number, held by the returned socket: it is machine-wide, and the kernel gives it back however its holder ends. Raises OSError when all are taken.
    """
    for port in range(port_first, port_first + _PORTS_TRIED):
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind((_HOST, port))
            if _is_free(port):
                return port, claim
        except OSError:
            pass
        claim.close()
    raise OSError(f"no free port from {port_first} to {port_first + _PORTS_TRIED - 1} for an engine")


def _is_free(port: int) -> bool:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        # As a server binds: connections of the last engine in TIME_WAIT do not matter, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True
