"""`python -m deploy.local up|down|status`: what `make` calls. The `taas` command calls the same functions."""

import sys

from deploy.local.down import down
from deploy.local.status import status
from deploy.local.up import up


def main() -> int:
    """The exit status of the command named."""
    match sys.argv[1:]:
        case ["up"]:
            return up()
        case ["down"]:
            return down()
        case ["status"]:
            return status()
        case ["status", "--json"]:
            return status(as_json=True)
    print("usage: python -m deploy.local up|down|status [--json]", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
