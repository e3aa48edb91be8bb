"""Which port an engine gets. A port is claimed before the engine listens on it, because an engine takes most
of a minute to start.
"""

import socket
from contextlib import closing
from typing import Final

_PORTS_TRIED: Final = 200


def family_of(host: str) -> socket.AddressFamily:
    """Of an address that this machine has. Raises OSError when it has none such."""
    family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
    with closing(socket.socket(family, kind)) as probe:
        probe.bind(address)
    return family


def claim_port(host: str, port_first: int, tried: int = _PORTS_TRIED) -> tuple[int, socket.socket]:
    """The first of so many ports of this address from `port_first` up on which nothing listens and that no
    other worker has claimed. The claim is the UDP port of the same number, held by the returned socket: it is
    machine-wide, and the kernel releases it however its holder ends. Raises OSError if all are taken.
    """
    family = family_of(host)
    for port in range(port_first, port_first + tried):
        claim = socket.socket(family, socket.SOCK_DGRAM)
        try:
            claim.bind((host, port))
            if _is_free(family, host, port):
                return port, claim
        except OSError:
            pass
        claim.close()
    if tried == 1:
        raise OSError(f"port {port_first} of {host} is taken")
    raise OSError(f"no free port from {port_first} to {port_first + tried - 1} for an engine")


def _is_free(family: socket.AddressFamily, host: str, port: int) -> bool:
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        # As a server binds: connections of the last engine in TIME_WAIT do not matter, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
