"""One of several processes of a gateway, started by the supervisor as `python -m gateway.process.serve_child
SOCKET_FD FIGURES_FD`.

Its settings arrive as one JSON line on standard input, which stays open: when it closes, the supervisor has
gone, and the process drains and ends.
"""

import json
import os
import socket
import sys
import threading

from gateway.lifecycle import Lifecycle
from gateway.metrics.counts import Metrics
from gateway.metrics.shared_figures import SnapshotWriter
from gateway.process.logs import configure_logs
from gateway.process.serve import GatewayServer, build, exit_status, make_server
from gateway.settings import GatewaySettings


def _end_with_supervisor(server: GatewayServer) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    server.should_exit = True


def main() -> int:
    """Serve on the inherited socket."""
    given = json.loads(sys.stdin.readline())
    settings = GatewaySettings(**given["settings"])
    configure_logs(settings.log_level)
    sock = socket.socket(fileno=int(sys.argv[1]))
    lifecycle, metrics = Lifecycle(), Metrics()
    server = make_server(build(given["factory"], settings, lifecycle, metrics), settings, lifecycle, metrics)
    threading.Thread(target=_end_with_supervisor, args=(server,), name="supervisor", daemon=True).start()
    # The first snapshot says that the process serves.
    with SnapshotWriter(metrics, int(sys.argv[2])) as writer:
        server.on_ready = writer.start
        server.run(sockets=[sock])
    return exit_status(lifecycle)


if __name__ == "__main__":
    sys.exit(main())
