"""Where Redis is, out of its URL: `redis://`, `rediss://` (TLS) or `unix://`. Pure."""

import ssl
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One Redis server and how to log in. A password is shown nowhere: the text of an address is safe to log."""

    host: str
    port: int
    unix_path: str | None
    tls: ssl.SSLContext | None
    username: str | None
    password: str | None = field(repr=False)
    database: int = 0

    def __str__(self) -> str:
        return self.unix_path or f"{self.host}:{self.port}"


def parse_redis_url(url: str) -> RedisAddress:
    """Read `redis[s]://[user[:password]@]host[:port][/db]` or `unix://[…@]/path[?db=n]`.

    On TLS `?ssl_ca_certs=FILE` trusts that authority, `?ssl_cert_reqs=none` trusts anybody. Raises ValueError, without the password in it.
    """
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(f"a Redis URL begins with redis://, rediss:// or unix://, not {parts.scheme!r}")
    unix_path = unquote(parts.path) if parts.scheme == "unix" else None
    if unix_path == "":
        raise ValueError("a unix:// URL names the path of a socket")
    database = query.get("db") or ("" if unix_path else parts.path.strip("/")) or "0"
    if not database.isascii() or not database.isdigit():
        raise ValueError(f"a Redis database is a number, not {database!r}")
    return RedisAddress(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 6379,
        unix_path=unix_path,
        tls=_tls(query) if parts.scheme == "rediss" else None,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        database=int(database),
    )


def _tls(query: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
    if query.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
