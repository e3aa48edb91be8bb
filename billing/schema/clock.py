"""PostgreSQL's clock, in milliseconds since 1970. Contracts and the catalogue use it."""

from typing import Final

from sqlalchemy import BigInteger, ColumnElement, Connection, literal_column, select

NOW_MS: Final[ColumnElement[int]] = literal_column(
    "(extract(epoch from clock_timestamp()) * 1000)::bigint", BigInteger
)


def database_now_ms(connection: Connection) -> int:
    """As of this statement."""
    return connection.execute(select(NOW_MS)).scalar_one()
