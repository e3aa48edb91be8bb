"""`python -m billing`: the billing process of this environment, until SIGTERM or SIGINT."""

import logging
import signal
import sys
import threading
from typing import Final

from billing.database import DatabaseError
from billing.process import run
from billing.settings import BillingSettings
from billing.wire.redis_address import RedisAddressError
from billing.wire.redis_server import WrongRedis

_STOPPING: Final = frozenset({signal.SIGTERM, signal.SIGINT})


def main() -> int:
    """Run billing. The exit status is 0 after an orderly stop."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    stop = threading.Event()
    # A thread waits for signals: a handler would run while the main thread may hold a lock, even the event's
    # own.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    threading.Thread(target=_stop_when_asked, args=(stop,), name="signals", daemon=True).start()
    try:
        run(BillingSettings(), stop)
    except (RedisAddressError, WrongRedis) as exc:
        print(f"billing cannot start: TAAS_REDIS_URL: {exc}", file=sys.stderr)
        return 1
    except DatabaseError as exc:
        print(f"billing cannot start: TAAS_DATABASE_URL: {exc}", file=sys.stderr)
        return 1
    except OSError as exc:
        print(f"billing cannot start: {exc}", file=sys.stderr)
        return 1
    return 0


def _stop_when_asked(stop: threading.Event) -> None:
    signal.sigwait(_STOPPING)
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
