"""The states of a line."""

from enum import IntEnum


class LineState(IntEnum):
    """`lost`: it was sent, and nobody knows what came of it; it is sent again even if its batch was cancelled
    or has expired meanwhile, because it may have been billed.
    """

    PENDING = 0
    RUNNING = 1
    LOST = 2
    SUCCEEDED = 3
    FAILED = 4
