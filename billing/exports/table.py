"""Tables as files: columns with a type, and rows as CSV or as Parquet, a group of rows at a time. It knows no
column and no source of rows.

A decimal is a whole number of 10^-12, so that dollars are exact to the pico-dollar. What is not there is
None: nothing between two commas, and null in Parquet.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, Final, Literal

from billing.moments import utc
from billing.refusals import Conflict

SCALE: Final = 12
ONE: Final = 10**SCALE
_PRECISION: Final = 38
_GROUP_ROWS: Final = 50_000

Value = str | int | None
Row = Mapping[str, Value]


class Kind(StrEnum):
    """What a column has. A moment is in ms since the epoch; a `second` is one without its milliseconds."""

    TEXT = "text"
    DECIMAL = "decimal"
    COUNT = "count"
    MOMENT = "moment"
    SECOND = "second"


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `empty`: whether it may be without a value."""

    name: str
    kind: Kind
    empty: bool = True


# How a table is written.
FileForm = Literal["csv", "parquet"]


def write(form: FileForm, columns: Sequence[Column], rows: Iterable[Row]) -> Iterator[bytes]:
    """The file in pieces. Raises Conflict, before the first, where Parquet cannot be written."""
    if form == "parquet":
        return _parquet_file(_arrow(), columns, rows)
    return _csv_file(columns, rows)


def _csv_file(columns: Sequence[Column], rows: Iterable[Row]) -> Iterator[bytes]:
    """A head, and a line for each row, as RFC 4180 has it."""
    yield _line_of([column.name for column in columns])
    shown = [(column.name, _CSV.get(column.kind, str)) for column in columns]
    for row in rows:
        yield _line_of(["" if (value := row[name]) is None else show(value) for name, show in shown])


def _line_of(fields: Iterable[object]) -> bytes:
    """A line of CSV."""
    made = io.StringIO()
    csv.writer(made).writerow(fields)
    return made.getvalue().encode()


def decimal_text(amount: int) -> str:
    """A decimal without an exponent and without zeros at its end."""
    whole, fraction = divmod(abs(amount), ONE)
    digits = f".{fraction:0{SCALE}d}".rstrip("0") if fraction else ""
    return f"{'-' if amount < 0 else ''}{whole}{digits}"


def second_text(moment_ms: int) -> str:
    """RFC 3339 in UTC, to the second."""
    return utc(moment_ms - moment_ms % 1000)


def moment_text(moment_ms: int) -> str:
    """RFC 3339 in UTC, to the millisecond, always with its three digits: readers guess one form for all."""
    return f"{second_text(moment_ms)[:-1]}.{moment_ms % 1000:03d}Z"


_CSV: Final[dict[Kind, Callable[[Any], str]]] = {
    Kind.DECIMAL: decimal_text,
    Kind.MOMENT: moment_text,
    Kind.SECOND: second_text,
}


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        message = "Billing writes Parquet with pyarrow, which is not installed: pip install 'taas[parquet]'."
        raise Conflict(message, param="as", code="parquet_not_installed") from exc
    return pyarrow


def _parquet_file(arrow: Any, columns: Sequence[Column], rows: Iterable[Row]) -> Iterator[bytes]:
    types = {
        Kind.TEXT: arrow.string(),
        Kind.DECIMAL: arrow.decimal128(_PRECISION, SCALE),
        Kind.COUNT: arrow.int64(),
        Kind.MOMENT: arrow.timestamp("ms", tz="UTC"),
        Kind.SECOND: arrow.timestamp("ms", tz="UTC"),
    }
    schema = arrow.schema([arrow.field(each.name, types[each.kind], each.empty) for each in columns])
    sink = _Pieces()
    left = iter(rows)
    with arrow.parquet.ParquetWriter(arrow.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        while group := list(islice(left, _GROUP_ROWS)):
            arrays = [_array(arrow, each, schema.field(each.name).type, group) for each in columns]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
            yield from sink.taken()
    yield from sink.taken()


def _array(arrow: Any, column: Column, type_: Any, group: Sequence[Row]) -> Any:
    values = [row[column.name] for row in group]
    if column.kind is Kind.SECOND:
        values = [None if each is None else int(each) - int(each) % 1000 for each in values]
    if column.kind is not Kind.DECIMAL:
        return arrow.array(values, type=type_)
    # The storage of decimal128 is the whole number itself, in 16 bytes: no decimal is made on the way.
    held = b"".join((0 if each is None else int(each)).to_bytes(16, "little", signed=True) for each in values)
    there = arrow.array([each is not None for each in values]).buffers()[1]
    return arrow.Array.from_buffers(type_, len(values), [there, arrow.py_buffer(held)])


class _Pieces:
    """A file that is written and given away."""

    closed = False

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def write(self, piece: Any) -> int:
        self._held.append(bytes(piece))
        return len(piece)

    def taken(self) -> list[bytes]:
        held, self._held = self._held, []
        return held

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
