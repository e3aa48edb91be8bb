"""Where Redis is and how to log in, read from one URL for every process of the product: `redis://`,
`rediss://` (TLS) or `unix://`.

It owns the form of the URL and the TLS settings. It opens no connection. No error that it raises shows any
part of a password.
"""

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

_TLS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS: Final = (*_TLS_FILES, "ssl_cert_reqs", "ssl_check_hostname")
OPTIONS: Final = ("db", *_TLS_OPTIONS)
_CERT_REQS: Final = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_TRUTH: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
# A `%` that does not begin an escape such as %2F.
_BARE_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_OPTION_NAME: Final = re.compile(r"[a-z_]{1,40}")
_DATABASE: Final = re.compile(r"[0-9]{1,5}")
_ENCODE: Final = "percent-encode these in user and password: / is %2F, # is %23, ? is %3F, @ is %40, % is %25"


class RedisAddressError(ValueError):
    """The URL cannot be used. The text says why in one line, and shows no part of a password."""


@dataclass(frozen=True, slots=True)
class RedisTls:
    """TLS settings, named as redis-py names them. A file that is None was not given."""

    ca_certs: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    cert_reqs: str = "required"
    check_hostname: bool = True

    def context(self) -> ssl.SSLContext:
        """As redis-py makes it: the machine's authorities and the given one are trusted. Raises OSError
        for a file that cannot be used.
        """
        context = ssl.create_default_context()
        context.check_hostname = self.check_hostname and self.cert_reqs != "none"
        context.verify_mode = _CERT_REQS[self.cert_reqs]
        if self.certfile is not None:
            # The empty password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(self.certfile, self.keyfile, password="")
        if self.ca_certs is not None:
            context.load_verify_locations(cafile=self.ca_certs)
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """One Redis server and how to log in. Its text is safe to log."""

    host: str
    port: int
    unix_path: str | None
    tls: RedisTls | None
    username: str | None
    password: str | None = field(repr=False)
    database: int = 0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.unix_path or f"{host}:{self.port}"

    def client_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `redis.Redis` and `redis.asyncio.Redis`."""
        arguments: dict[str, Any] = {
            "db": self.database,
            "username": self.username,
            "password": self.password,
        }
        # Otherwise each connection names its library with CLIENT SETINFO, which an ACL user has no right to.
        arguments["driver_info"] = None
        if self.unix_path is not None:
            return arguments | {"unix_socket_path": self.unix_path}
        arguments |= {"host": self.host, "port": self.port}
        if self.tls is None:
            return arguments
        return arguments | {
            "ssl": True,
            "ssl_ca_certs": self.tls.ca_certs,
            "ssl_certfile": self.tls.certfile,
            "ssl_keyfile": self.tls.keyfile,
            "ssl_cert_reqs": self.tls.cert_reqs,
            "ssl_check_hostname": self.tls.check_hostname,
            "ssl_password": "",
        }


def parse_redis_url(url: str) -> RedisAddress:
    """Read `redis[s]://[[user]:password@]host[:port][/db]` or `unix://[[user]:password@]/path`, with the
    options `OPTIONS` after `?`.

    TLS files are read once, so that a wrong one is refused here. Raises RedisAddressError.
    """
    if not url.isprintable() or " " in url:
        raise RedisAddressError("a Redis URL has no spaces and no control characters")
    scheme, separator, rest = url.partition("://")
    _check_scheme(scheme if separator else "")
    # A password that holds / # or ? unescaped ends too early; its @ then stands behind the part that names
    # the host.
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if rest.count("@") > 1 or ("@" in rest and "@" not in authority):
        raise RedisAddressError(
            f"the password, or another part of the URL, has special characters: {_ENCODE}"
        )
    login, _, server = authority.rpartition("@")
    if _BARE_PERCENT.search(login):
        raise RedisAddressError(f"the user or password has a % that begins no escape: {_ENCODE}")
    if "#" in rest:
        raise RedisAddressError(f"a Redis URL has no part after #; in a password, {_ENCODE}")
    if "," in server:
        raise RedisAddressError("it names several servers. " + NO_CLUSTER)
    # Without the login, so that no error can show it.
    try:
        parts = urlsplit(f"{scheme}://{server}{rest.removeprefix(authority)}")
        host, port = parts.hostname or "127.0.0.1", parts.port
    except ValueError:
        raise RedisAddressError(
            "its host or port cannot be read: write HOST:PORT, the port from 1 to 65535, an IPv6 address in "
            "brackets"
        ) from None
    if port == 0:
        raise RedisAddressError("port 0 is no port of a server")
    username, colon, password = login.partition(":")
    options = _options(parts.query)
    unix_path = _unix_path(parts.path, server) if scheme == "unix" else None
    return RedisAddress(
        host=host,
        port=port or 6379,
        unix_path=unix_path,
        tls=_tls(scheme, options),
        username=unquote(username) or None,
        password=unquote(password) if colon and password else ("" if username else None),
        database=_database(options.get("db"), "" if unix_path else parts.path),
    )


NO_CLUSTER: Final = (
    "Redis Cluster and Sentinel are not supported: a script changes keys of several slots at once. Give the "
    "address of one server "
    "(the primary), or of what always leads to it: a managed service's primary endpoint, a proxy, or a DNS "
    "name that fails over"
)


def _check_scheme(scheme: str) -> None:
    if scheme in {"redis", "rediss", "unix"}:
        return
    if re.fullmatch(r"(redis(s)?[+-])?(sentinel|cluster)", scheme):
        raise RedisAddressError(NO_CLUSTER)
    raise RedisAddressError("a Redis URL begins with redis://, rediss:// (TLS) or unix://")


def _unix_path(path: str, server: str) -> str:
    if server or path in {"", "/"}:
        raise RedisAddressError(
            "a unix:// URL names the absolute path of a socket, such as unix:///run/redis/redis.sock"
        )
    return unquote(path)


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in OPTIONS:
            # A text that is not a plain word may be anything, even part of a password.
            shown = repr(name) if _OPTION_NAME.fullmatch(name) else "something that is no name"
            raise RedisAddressError(f"unknown option {shown}; known are {', '.join(OPTIONS)}")
        if name in options:
            raise RedisAddressError(f"the option {name} is given twice")
        options[name] = value
    return options


def _database(option: str | None, path: str) -> int:
    from_path = path.removeprefix("/")
    if option is not None and from_path:
        raise RedisAddressError("the database is given twice, after the port and as db")
    database = from_path if option is None else option
    if option is None and not from_path:
        return 0
    if not _DATABASE.fullmatch(database):
        raise RedisAddressError(
            f"after the port stands a database's number, or nothing; in a password, {_ENCODE}"
        )
    return int(database)


def _tls(scheme: str, options: dict[str, str]) -> RedisTls | None:
    given = [name for name in _TLS_OPTIONS if name in options]
    if scheme != "rediss":
        if given:
            raise RedisAddressError(f"{given[0]} is for TLS: begin the URL with rediss://")
        return None
    if empty := [name for name in _TLS_FILES if options.get(name) == ""]:
        raise RedisAddressError(f"{empty[0]} names no file")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise RedisAddressError("ssl_keyfile is the key of a certificate: give ssl_certfile too")
    cert_reqs = options.get("ssl_cert_reqs", "required")
    if cert_reqs not in _CERT_REQS:
        raise RedisAddressError(f"ssl_cert_reqs is one of {', '.join(_CERT_REQS)}")
    check_hostname = options.get("ssl_check_hostname", "true").lower()
    if check_hostname not in _TRUTH:
        raise RedisAddressError("ssl_check_hostname is true or false")
    ca_certs, certfile, keyfile = (options.get(name) for name in _TLS_FILES)
    tls = RedisTls(ca_certs, certfile, keyfile, cert_reqs, _TRUTH[check_hostname])
    for name in _TLS_FILES:
        _check_readable(name, options.get(name))
    try:
        tls.context()
    except OSError as exc:
        pair = "ssl_certfile and ssl_keyfile are no certificate with its (unencrypted) key in PEM form"
        wrong = (
            f"{pair}, or ssl_ca_certs is no certificate"
            if certfile and ca_certs
            else pair
            if certfile
            else "ssl_ca_certs is no certificate in PEM form"
        )
        raise RedisAddressError(f"{wrong}: {exc.strerror or type(exc).__name__}") from exc
    return tls


def _check_readable(name: str, path: str | None) -> None:
    if path is None:
        return
    try:
        with Path(path).open("rb"):
            return
    except OSError as exc:
        raise RedisAddressError(f"{name}: {path} cannot be read: {exc.strerror}") from exc
