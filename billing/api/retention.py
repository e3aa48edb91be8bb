"""Routes of retention: which days of usage events there are, what keeps them, and dropping one."""

from datetime import date
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from pydantic import Field

from billing.api.answer import Answer, Ms
from billing.api.control import Control
from billing.api.fields import Body
from billing.api.query import KNOWN_QUERY
from billing.ledger import retention
from billing.moments import DAY_MS, day_of
from billing.refusals import Invalid

router = APIRouter(prefix="/admin/v1/retention", tags=["retention"], dependencies=[KNOWN_QUERY])

# Of the days that are due and kept, and of those that may be dropped, so many are shown.
_DUE_MOST: Final = 31
_DROPPED_MOST: Final = 366
Days = Annotated[int, Query(ge=retention.DAYS_LEAST, le=36_500)]
DayText = Annotated[str, Field(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$")]


class DueAnswer(Answer):
    """A day that is older than is kept, and about how many events it has. `blocked`: why it is not final;
    nothing if it is dropped at the next round.
    """

    day: str
    events: int
    blocked: list[str]


class DroppedAnswer(Answer):
    """A day that was dropped. `kept`: requests at providers, whose cost may get a price later."""

    day: str
    events: int
    kept: int
    dropped_ms: Ms


class RetentionAnswer(Answer):
    """`days`: how many are kept; null: all. `oldest`: the first day that is there. `due`: the oldest first,
    31 at most of those that are kept, and of those that may be dropped, among the 124 oldest. `dropped`: the
    newest first, 366 at most.
    """

    days: int | None
    oldest: str | None
    due: list[DueAnswer]
    dropped: list[DroppedAnswer]


class DayDrop(Body):
    """Which day, in UTC."""

    day: DayText


@router.get("", response_model=RetentionAnswer)
def show(control: Control, days: Days | None = None) -> dict[str, Any]:
    """What retention keeps. With `days`, as if it kept so many."""
    kept = control.retention_days if days is None else days
    with control.reading() as connection:
        oldest_ms = retention.oldest_ms(connection)
        due = [] if kept is None else retention.due(connection, kept, most=_DUE_MOST)
        dropped = retention.dropped(connection, most=_DROPPED_MOST)
    return {
        "days": kept,
        "oldest": None if oldest_ms is None else day_of(oldest_ms),
        "due": [
            {"day": day_of(each.day * DAY_MS), "events": each.events, "blocked": each.blocked} for each in due
        ],
        "dropped": [_dropped(each) for each in dropped],
    }


@router.post("/drop", response_model=DroppedAnswer)
def drop(body: DayDrop, control: Control, response: Response) -> dict[str, Any]:
    """Drop the usage events of a day, if it is final and at least 35 days old. Entries of the ledger, sums by
    hour, invoices, and what proves the events stay. It cannot be undone.
    """
    try:
        day = (date.fromisoformat(body.day) - date(1970, 1, 1)).days
    except ValueError as exc:
        raise Invalid(str(exc), param="day") from exc
    with control.reading() as connection:
        retention.refuse(connection, day)
    retention.prove(control.engine, day)
    with control.changing(response) as connection:
        return _dropped(retention.take_away(connection, day))


def _dropped(each: retention.Dropped) -> dict[str, Any]:
    return {
        "day": day_of(each.day * DAY_MS),
        "events": each.events,
        "kept": each.kept,
        "dropped_ms": each.dropped_ms,
    }
