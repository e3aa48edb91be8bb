"""Query parameters and answers of paged lists."""

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Query

from billing.page import MARK_CHARS_MAX, Page, PageRequest

ROWS_DEFAULT: Final = 100
ROWS_MAX: Final = 1000

T = TypeVar("T")


After = Annotated[
    str | None,
    Query(max_length=MARK_CHARS_MAX, description="`next` of the page before, for the one after it."),
]


def _asked(
    limit: Annotated[int, Query(ge=1, le=ROWS_MAX, description="At most so many.")] = ROWS_DEFAULT,
    after: After = None,
) -> PageRequest:
    return PageRequest(limit, after)


PageQuery = Annotated[PageRequest, Depends(_asked)]
NameContains = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=128,
        pattern=r"^[^\x00]*$",
        description="Whose name has this in it, in any case.",
    ),
]


def listing(page: Page[T], shown: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
    """A page as JSON."""
    return {"data": [shown(row) for row in page.rows], "next": page.next}
