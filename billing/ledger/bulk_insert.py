"""Inserts many rows as one statement with one parameter. It owns the SQL; it knows no particular table.

The driver parses a statement with a parameter per value at each call: for 500 usage events that took longer
than everything else together. Here PostgreSQL reads the rows from one JSON array, by the column types of the
table.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from sqlalchemy import Connection, CursorResult, Table, text

_QUOTE: Final = '"{}"'.format


def insert_rows(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    ignore_known: bool = False,
    returning: Sequence[str] = (),
) -> CursorResult[Any]:
    """Insert rows, in their order, that all have the same columns. Integers beyond 64 bits are given as
    decimal strings.

    `ignore_known` leaves out what conflicts with a row that is there; `returning` names columns of those
    inserted.
    """
    columns = ", ".join(_QUOTE(table.c[name].name) for name in rows[0])
    statement = (
        f"insert into {_QUOTE(table.name)} ({columns}) "  # noqa: S608 (names of our own tables)
        f"select {columns} from json_populate_recordset(null::{_QUOTE(table.name)}, cast(:rows as json))"
    )
    if ignore_known:
        statement += " on conflict do nothing"
    if returning:
        statement += " returning " + ", ".join(_QUOTE(table.c[name].name) for name in returning)
    return connection.execute(text(statement), {"rows": orjson.dumps(rows).decode()})
