"""What the product requires of a Redis server, and one-line texts that say why it cannot be used or may lose
acknowledged data.

It owns the requirements: the oldest versions, one server and no cluster, and persistence. It knows no key of
the product.
"""

import contextlib
import re
from collections.abc import Mapping
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from billing.wire.redis_address import NO_CLUSTER, RedisAddress, parse_redis_url

# By the name that the server reports. Scripts read the clock and then write, and streams are claimed with
# XAUTOCLAIM.
_OLDEST: Final = {"redis": (7, 0), "valkey": (7, 2)}
OLDEST_TEXT: Final = "Redis 7.0 or Valkey 7.2"
_VERSION: Final = re.compile(r"(\d+)\.(\d+)")
# The settings that "acknowledged usage is never lost" depends on, the best value first, and what each other
# value risks.
_DURABLE: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "appendonly": (("yes",),
    "a restart of Redis loses usage that is not billed yet, and every limit's level"),
    "appendfsync": (("everysec", "always"),
    "a crash of its machine loses the last seconds of acknowledged usage"),
    "maxmemory-policy": (("noeviction",),
    "Redis may throw away usage, keys and reservations when its memory is full"),
}  # fmt: skip
_WANTED_TEXT: Final = ", ".join(f"{name} {wanted[0]}" for name, (wanted, _) in _DURABLE.items())
# The first versions that tell what is on their disk (WAITAOF).
_TELLS_SYNCED: Final = {"redis": (7, 2), "valkey": (7, 2)}
_START_TIMEOUT_S: Final = 2.0
_LOGIN_CODES: Final = {
    "WRONGPASS": "refuses the login: wrong user or password in TAAS_REDIS_URL",
    "NOAUTH": "asks for a password: give it in TAAS_REDIS_URL",
    "NOPERM": "does not permit the user of TAAS_REDIS_URL what it needs (deploy/redis/users.acl has the "
    "rules)",
}


class WrongRedis(Exception):
    """A server that can never be used, however long one waits. The text says what it is and what to do."""


def read_hello(reply: Any) -> dict[str, str]:
    """The fields of HELLO's reply, as RESP2 or RESP3 gives it; empty where there is nothing to be read."""
    pairs = reply.items() if isinstance(reply, Mapping) else zip(reply[::2], reply[1::2], strict=False)
    return {_text(name): _text(value) for name, value in pairs if isinstance(value, bytes | str)}


def why_unusable(hello: Mapping[str, str]) -> str | None:
    """Why the server that gave this reply cannot be used; None if it can. A server that does not report its
    version is accepted.
    """
    if hello.get("mode") in {"cluster", "sentinel"}:
        return f"is a {'Redis Cluster' if hello['mode'] == 'cluster' else 'Sentinel'}. {NO_CLUSTER}"
    if _older(hello, _OLDEST):
        return f"is version {hello['version']}; {OLDEST_TEXT} or newer is needed"
    return None


def _older(hello: Mapping[str, str], than: Mapping[str, tuple[int, int]]) -> bool:
    first = than.get(hello.get("server", ""))
    found = _VERSION.match(hello.get("version", ""))
    return first is not None and found is not None and (int(found[1]), int(found[2])) < first


def require_usable(url: str) -> RedisAddress:
    """For the start of a process: the address, once the server has shown that it can be used, if it answers
    now. Raises RedisAddressError or WrongRedis. It does not report a server that is away or refuses the
    login, because that may change.
    """
    address = parse_redis_url(url)
    with redis.Redis(
        **address.client_arguments(), socket_timeout=_START_TIMEOUT_S,
        socket_connect_timeout=_START_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
    ) as client, contextlib.suppress(redis.RedisError, OSError):  # fmt: skip
        examine(client, address)
    return address


def examine(client: redis.Redis, address: RedisAddress) -> None:
    """Ask the server what it is. Needs no permission. Raises WrongRedis, or redis.RedisError when it does
    not answer.
    """
    untyped: Any = client
    try:
        reply = untyped.execute_command("HELLO")
    except redis.exceptions.ResponseError as exc:
        if isinstance(exc, redis.exceptions.NoPermissionError) or login_refused(exc):
            raise
        return  # a proxy that does not know the command: the server behind it is unknown
    if why := why_unusable(read_hello(reply)):
        raise WrongRedis(f"Redis at {address} {why}.")


def durability_warnings(client: redis.Redis) -> list[str]:
    """In which ways the server may lose what it has acknowledged, a sentence each. Raises
    redis.RedisError.
    """
    try:
        found = {_text(name): _text(value) for name, value in client.config_get(*_DURABLE).items()}
    except redis.exceptions.ResponseError:
        return [
            "Whether Redis keeps what it has acknowledged cannot be checked: it does not permit CONFIG "
            f"GET. It should have {_WANTED_TEXT}."
        ]
    warnings = [
        f"Redis has {name} {found[name]}, not {wanted[0]}: {cost}."
        for name, (wanted, cost) in _DURABLE.items()
        # Without an append-only file it does not matter how the file is written.
        if found.get(name, wanted[0]) not in wanted
        and not (name == "appendfsync" and found.get("appendonly") == "no")
    ]
    syncs_later = found.get("appendonly") == "yes" and found.get("appendfsync") == "everysec"
    if syncs_later and _older(_hello(client), _TELLS_SYNCED):
        warnings.append(
            "Redis has appendfsync everysec and is older than 7.2, so that gateways cannot learn what is on "
            "its disk: a crash of its machine loses the last seconds of acknowledged usage, unless it has a "
            "replica."
        )
    return warnings


def _hello(client: redis.Redis) -> dict[str, str]:
    untyped: Any = client
    try:
        return read_hello(untyped.execute_command("HELLO"))
    except redis.exceptions.ResponseError:
        return {}


def login_refused(exc: Exception) -> bool:
    """Whether the server did not take the user or password."""
    return isinstance(exc, redis.exceptions.AuthenticationError)


def why_refused(message: str) -> str | None:
    """What an error reply says of the login or its permissions, with the server's own text if that helps;
    None for any other reply.
    """
    code = message.partition(" ")[0]
    said = _LOGIN_CODES.get(code)
    return f"{said}: {message.partition(' ')[2][:200]}" if said is not None and code == "NOPERM" else said


def trouble(address: RedisAddress, exc: Exception) -> str:
    """In one line why a call to this server failed, without its password."""
    if login_refused(exc):
        return f"Redis at {address} {_LOGIN_CODES['NOAUTH' if address.password is None else 'WRONGPASS']}"
    if isinstance(exc, redis.exceptions.NoPermissionError):
        return f"Redis at {address} {why_refused(f'NOPERM {exc}')}"
    return f"Redis at {address} does not answer: {' '.join(str(exc).split()) or type(exc).__name__}"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
