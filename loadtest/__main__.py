"""`python -m loadtest`: what `make loadtest` runs."""

import sys

from loadtest.run import main

if __name__ == "__main__":
    sys.exit(main())
