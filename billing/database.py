"""How the product reaches PostgreSQL: the form of its URL, the settings of every connection, and the oldest
version that it accepts.

It owns connections, not tables. They work through PgBouncer in transaction mode: nothing outlives a
transaction, neither prepared statements nor session settings nor session locks. No error that it raises shows
a password.
"""

from typing import Any, Final

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError

_DRIVER: Final = "postgresql+psycopg"
_SCHEMES: Final = frozenset({"postgres", "postgresql", _DRIVER})
# The oldest version on which all tests have passed.
_OLDEST: Final = 15
_CONNECT_S: Final = 5


class DatabaseError(ValueError):
    """The URL, or its server, cannot be used. The text says why in one line."""


def read_database_url(url: str) -> URL:
    """`postgres://`, `postgresql://` or `postgresql+psycopg://`, with libpq's options after `?`. Raises
    DatabaseError.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise DatabaseError("a PostgreSQL URL begins with postgresql:// (or postgres://)")
    if not url.isprintable() or " " in url:
        raise DatabaseError("a PostgreSQL URL has no spaces and no control characters; percent-encode them")
    if rest.partition("?")[0].count("@") > 1:
        raise DatabaseError(
            "the user or password has special characters: percent-encode these: / is %2F, # is %23, ? is "
            "%3F, @ is %40, % is %25"
        )
    try:
        parsed = make_url(f"{_DRIVER}://{rest}")
    except (ArgumentError, ValueError):
        raise DatabaseError(
            "it cannot be read: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…, special "
            "characters of the password percent-encoded"
        ) from None
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    if unknown := sorted(name for name in parsed.query if name not in known):
        shown = repr(unknown[0][:40]) if unknown[0].isidentifier() else "that is no name"
        raise DatabaseError(f"libpq knows no option {shown}")
    return parsed


def connect(url: str, *, program: str = "taas", **pool: Any) -> Engine:
    """An engine; it connects when it is used. `program`: the name of its connections, which the audit log has
    of changes that nobody signs. Raises DatabaseError for the URL.
    """
    arguments = {
        "application_name": program,
        "connect_timeout": _CONNECT_S,
        # A statement that was prepared on one server connection is unknown on the next one that PgBouncer
        # assigns.
        "prepare_threshold": None,
    }
    return create_engine(read_database_url(url), connect_args=arguments, **pool)


def require_version(connection: Connection) -> None:
    """Raises DatabaseError for a server that is too old."""
    number = int(connection.execute(text("select current_setting('server_version_num')")).scalar_one())
    if number < _OLDEST * 10_000:
        raise DatabaseError(f"the server is PostgreSQL {number // 10_000}; {_OLDEST} or newer is needed")
