"""`python -m batch`: the batch process of this environment, until SIGTERM or SIGINT."""

import logging
import sys

from billing.batch.process import run
from billing.batch.settings import BatchSettings
from billing.database import DatabaseError


def main() -> int:
    """Run it. The exit status is 0 after an orderly stop."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        run(BatchSettings())
    except DatabaseError as exc:
        print(f"the batch process cannot start: TAAS_DATABASE_URL: {exc}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as exc:
        print(f"the batch process cannot start: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
