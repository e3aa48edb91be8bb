"""The ids of a request's parts. A stream that was interrupted is resumed under the request's id with a number
after it: 2 for the second part. Pure.
"""

from typing import Final

# As SQL's LIKE has it: ids of later parts, which are no requests of their own.
LATER_PART_LIKE: Final = "req\\_%-%"


def part_id(request_id: str, number: int) -> str:
    """The id of a later part."""
    return f"{request_id}-{number}"


def is_later_part(part: str) -> bool:
    """As `LATER_PART_LIKE` says it."""
    return part.startswith("req_") and "-" in part[4:]


def part_number(part: str, request_id: str) -> int:
    """Which part of the request this is; the first one has the request's own id."""
    return int(part.removeprefix(request_id)[1:] or 1)
