"""Makes listening sockets. Connections inherit their options, so these cost a request nothing. It accepts
nothing itself.
"""

import socket

BACKLOG = 2048
# Bytes that the kernel buffers. With its default of megabytes only the kernel would notice a caller that does
# not read.
NOT_SENT_BYTES_MAX = 128 * 1024
KEEP_ALIVE_IDLE_S = 60
KEEP_ALIVE_INTERVAL_S = 10
KEEP_ALIVE_TRIES = 3


def listening_sockets(host: str, port: int, count: int, write_stall_s: float) -> list[socket.socket]:
    """`count` sockets on one port, among which the kernel distributes connections; port 0 picks a free one.
    There is one socket per process and not one for all: on a shared socket the process that wakes first takes
    every waiting connection. Raises OSError if the port is taken, also by a gateway that shares it among its
    own processes.
    """
    if count == 1:
        return [_listen(host, port, write_stall_s, shared=False)]
    require_free(host, port)
    first = _listen(host, port, write_stall_s, shared=True)
    sockets = [first]
    try:
        for _ in range(count - 1):
            sockets.append(_listen(host, port_of(first), write_stall_s, shared=True))
    except OSError:
        for one in sockets:
            one.close()
        raise
    return sockets


def require_free(host: str, port: int) -> None:
    """Raises OSError if something listens there."""
    _bind(host, port, shared=False).close()


def port_of(sock: socket.socket) -> int:
    """The port it is bound to."""
    port: int = sock.getsockname()[1]
    return port


def _bind(host: str, port: int, *, shared: bool) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _listen(host: str, port: int, write_stall_s: float, *, shared: bool) -> socket.socket:
    sock = _bind(host, port, shared=shared)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": KEEP_ALIVE_IDLE_S,
        "TCP_KEEPINTVL": KEEP_ALIVE_INTERVAL_S,
        "TCP_KEEPCNT": KEEP_ALIVE_TRIES,
        "TCP_NOTSENT_LOWAT": NOT_SENT_BYTES_MAX,
        # This includes what is in the kernel's buffers: if it stays unread for this long, the connection is
        # reset.
        "TCP_USER_TIMEOUT": int(write_stall_s * 1000),
    }
    for name, value in options.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock
