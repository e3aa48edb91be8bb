"""Leaks on purpose, to see that they are named: an event dropped, a token taken off an event, a reservation lost with its open entry."""

import json
import time
from typing import Any, Final

import redis

LEAKS: Final = ("event", "token", "reservation")
_WAIT_S: Final = 60.0


def leak(what: str, client: redis.Redis) -> str:
    """Leak once, of whatever request comes by; its id. Billing must not read meanwhile (an event), or a request must be open (a reservation).

    Raises TimeoutError when none comes.
    """
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        pattern = "{c:*}:open" if what == "reservation" else "{c:*}:usage"
        for key in client.scan_iter(pattern, count=1000):
            request_id = _lose_reservation(client, key) if what == "reservation" else _spoil(client, key, what)
            if request_id:
                return request_id
        time.sleep(0.02)
    raise TimeoutError(f"nothing to leak of: {what}")


def _lose_reservation(client: redis.Redis, key: str) -> str:
    opened: Any = client.zrange(key, 0, -1)
    for request_id in opened:
        reservation = key.removesuffix("open") + f"r:{request_id}"
        if int(client.hget(reservation, "o") or 0) > 0:
            with client.pipeline(transaction=True) as both:
                both.delete(reservation)
                both.zrem(key, request_id)
                both.execute()
            return str(request_id)
    return ""


def _spoil(client: redis.Redis, key: str, what: str) -> str:
    entries: Any = client.xrange(key)
    groups: Any = client.xinfo_groups(key)
    for entry, fields in entries:
        event = json.loads(fields["e"])
        if event["billed"]["output"] < 2 or any(entry <= read["last-delivered-id"] for read in groups):
            continue
        if what == "token":
            for part in ("produced", "billed"):
                event[part]["output"] -= 1
            event["delivered"]["output"] = min(event["delivered"]["output"], event["billed"]["output"])
            client.xadd(key, {"e": json.dumps(event, separators=(",", ":"))})
        client.xdel(key, entry)
        return str(event["request_id"])
    return ""
