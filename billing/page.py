"""One page of a list: its length, its start, and the mark at which the next page starts.

A mark holds the values of the order's columns in the last row shown. So every page costs the same, and rows
that are added or removed meanwhile shift nothing. It knows neither HTTP nor a noun.
"""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Select, select, tuple_

from billing.refusals import Invalid

MARK_CHARS_MAX: Final = 1024
_INT_MAX: Final = 2**63 - 1

T = TypeVar("T")
# What a row is sorted by.
Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """At most `limit` rows after the mark. `by_id`: the mark is the id of the last row shown, which is the
    last of the order's columns.
    """

    limit: int
    after: str | None = None
    by_id: bool = False


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """`next`: the mark of the next page; None if this is the last."""

    rows: list[T]
    next: str | None


@dataclass(frozen=True, slots=True)
class Order(Generic[T]):
    """How a list is sorted: by `place`, whose values have these types and are unique together. `columns`: the
    same in SQL, never null; a list that is not read by SQL has none. `name` keeps out marks of other lists.
    """

    name: str
    place: Callable[[T], Place]
    types: tuple[type, ...]
    columns: tuple[ColumnElement[Any], ...] = ()
    descending: bool = False


def read_page(
    connection: Connection,
    query: Select[Any],
    order: Order[T],
    read: Callable[[Row[Any]], T],
    asked: PageRequest,
) -> Page[T]:
    """The rows of this query that come after the mark. Raises Invalid for a mark that is not one of this
    list.
    """
    if asked.after is not None:
        found = _place_of_id(connection, asked.after, order) if asked.by_id else _place_of(asked.after, order)
        place, begins = tuple_(*order.columns), tuple_(*found)
        query = query.where(place < begins if order.descending else place > begins)
    columns = [column.desc() if order.descending else column for column in order.columns]
    rows = [read(row) for row in connection.execute(query.order_by(*columns).limit(asked.limit + 1))]
    return _cut(rows, order, asked.limit)


def page_of(rows: Sequence[T], order: Order[T], asked: PageRequest) -> Page[T]:
    """The same for rows that are all given, in any order."""
    begins = None if asked.after is None else _place_of(asked.after, order)
    left = sorted((row for row in rows if begins is None or order.place(row) > begins), key=order.place)
    return _cut(left, order, asked.limit)


def contains(column: ColumnElement[Any], text: str) -> ColumnElement[bool]:
    """Whether a column contains this text, in any case."""
    return column.icontains(text, autoescape=True)


def _cut(rows: list[T], order: Order[T], limit: int) -> Page[T]:
    shown = rows[:limit]
    return Page(shown, _mark(order, shown[-1]) if len(rows) > limit else None)


def _mark(order: Order[T], row: T) -> str:
    said = json.dumps([order.name, *order.place(row)], separators=(",", ":"))
    return base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")


def _place_of(mark: str, order: Order[T]) -> Place:
    try:
        padded = mark + "=" * (-len(mark) % 4)
        name, *place = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError, RecursionError) as exc:
        raise _not_a_mark() from exc
    types = tuple(type(value) for value in place)
    if name != order.name or types != order.types or not all(map(_can_be_asked, place)):
        raise _not_a_mark()
    return tuple(place)


def _place_of_id(connection: Connection, row_id: str, order: Order[Any]) -> Place:
    last = order.types[-1]
    try:
        value = last(row_id)
    except ValueError as exc:
        raise _not_a_mark() from exc
    row = None
    if _can_be_asked(value):
        row = connection.execute(select(*order.columns).where(order.columns[-1] == value)).one_or_none()
    if row is None:
        raise Invalid("`after` is no id of this list.", param="after")
    return tuple(row)


def _can_be_asked(value: str | int) -> bool:
    """Whether PostgreSQL accepts it: no number beyond its range, no NUL, no lone surrogate."""
    if isinstance(value, int):
        return abs(value) <= _INT_MAX
    return "\x00" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def _not_a_mark() -> Invalid:
    return Invalid("`after` is not the `next` of a page of this list.", param="after")
