"""One of several processes of a gateway, started by the supervisor as `python -m gateway.process.serve_child
SOCKET_FD`.

Standard input is a socket to the supervisor. What the process is to be arrives there as one line of JSON; it
answers with a byte once it serves. When that socket closes, the supervisor has gone, and the process drains
and ends.
"""

import contextlib
import json
import os
import socket
import sys
import threading

from gateway.process.logs import configure_logs
from gateway.process.serve import GatewayServer, serve
from gateway.settings import GatewaySettings


def _stay_with_supervisor(server: GatewayServer) -> None:
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 4096):
            pass
    server.should_exit = True


def main() -> int:
    """Serve on the inherited socket."""
    given = json.loads(sys.stdin.readline())
    settings = GatewaySettings(**given["settings"])
    configure_logs(settings.log_level)

    def ready(server: GatewayServer) -> None:
        with contextlib.suppress(OSError):
            os.write(sys.stdin.fileno(), b".")
        threading.Thread(target=_stay_with_supervisor, args=(server,), name="supervisor", daemon=True).start()

    return serve(
        settings,
        given["factory"],
        socket.socket(fileno=int(sys.argv[1])),
        metrics_port=given["metrics_port"],
        deaths=given["deaths"],
        on_ready=ready,
    )


if __name__ == "__main__":
    sys.exit(main())
