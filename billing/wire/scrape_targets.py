"""Which processes have a metrics page now: each renews its entry in Redis every two seconds. It owns that
list; it reads no page.

A member is a page's job and address, its score the end of its lease by Redis's clock. Two processes with the
same address (two machines that both serve their metrics on loopback) are one member; Prometheus could not
distinguish them either.
"""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis

from billing.wire import redis_clock, redis_keys
from billing.wire.redis_address import RedisAddress

RENEW_S: Final = 2.0
# Two missed renewals; as long as the leases of instances and gateways.
LEASE_MS: Final = 5_000
_UNSPECIFIED: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared with, not listened on


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """One page at `/metrics`. `job`: Prometheus's name for this kind of process. `address`: HOST:PORT."""

    job: str
    address: str

    def member(self) -> str:
        """As it stands in Redis."""
        return json.dumps({"job": self.job, "address": self.address}, separators=(",", ":"))


def address_of(host: str, port: int, seen_from: RedisAddress) -> str:
    """HOST:PORT by which others reach a page that listens on this host. Where that is every address of the
    machine, it is the one that leads to Redis. Raises OSError.
    """
    if host in _UNSPECIFIED:
        host = _own_address(seen_from)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def renew(client: redis.Redis, target: ScrapeTarget, now_ms: int) -> None:
    """List this page for another lease. Raises redis.RedisError."""
    client.zadd(redis_keys.SCRAPE_TARGETS, {target.member(): now_ms + LEASE_MS})


def withdraw(client: redis.Redis, target: ScrapeTarget) -> None:
    """Remove this page from the list. Raises redis.RedisError."""
    client.zrem(redis_keys.SCRAPE_TARGETS, target.member())


def read_targets(client: redis.Redis) -> list[ScrapeTarget]:
    """The listed pages, by job and address; lapsed ones are removed. The client must not decode. Raises
    redis.RedisError.
    """
    with client.pipeline(transaction=False) as read:
        read.time()
        read.zrange(redis_keys.SCRAPE_TARGETS, 0, -1, withscores=True)
        clock, members = read.execute()
    now_ms = redis_clock.milliseconds(clock)
    # A lease that ends later than one given now was given before Redis's clock went back. A living process
    # has renewed it since, or will soon.
    live = [member for member, until_ms in members if 0 <= until_ms - now_ms <= LEASE_MS]
    if len(live) < len(members):
        client.zremrangebyscore(redis_keys.SCRAPE_TARGETS, 0, f"({now_ms}")
    return sorted(_read(live), key=lambda target: (target.job, target.address))


def _read(members: Sequence[bytes]) -> list[ScrapeTarget]:
    """What cannot be read is left out: one bad member must not take the others away."""
    found = []
    for member in members:
        try:
            fields: dict[str, Any] = json.loads(member)
            found.append(ScrapeTarget(str(fields["job"]), str(fields["address"])))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _own_address(to: RedisAddress) -> str:
    """This machine's address on the way to Redis. Nothing is sent."""
    if to.unix_path is not None:
        return "127.0.0.1"
    family, kind, _, _, peer = socket.getaddrinfo(to.host, to.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(peer)
        own: str = probe.getsockname()[0]
    return own
