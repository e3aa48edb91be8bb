"""Leaks on purpose, to see that they are named: an event dropped, a token taken off an event, a
reservation lost with its open entry.
"""

import json
import time
from typing import Any, Final

import redis

from loadtest.faults.parts import MODEL

LEAKS: Final = ("event", "token", "reservation")
_WAIT_S: Final = 60.0


def spoil_event(client: redis.Redis, what: str) -> str:
    """Drop the event of whatever request comes by, or take a token off it; the request's id. Billing must not
    read meanwhile.

    Raises TimeoutError when none comes.
    """
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        for key in client.scan_iter("{c:*}:usage", count=1000):
            request_id = _spoil(client, key, what)
            if request_id:
                return request_id
        time.sleep(0.02)
    raise TimeoutError(f"nothing to leak of: {what}")


def lose_reservation(client: redis.Redis) -> str:
    """Lose the reservation of an open request that has output, and its open entry; its id, or "" where
    there is none now.
    """
    for key in client.scan_iter(f"{{c:{MODEL}}}:open", count=1000):
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
        # Nobody but its provider could name what was bought.
        if (
            event["billed"]["output"] < 2
            or event.get("provider")
            or any(entry <= read["last-delivered-id"] for read in groups)
        ):
            continue
        if what == "token":
            for part in ("produced", "billed"):
                event[part]["output"] -= 1
            event["delivered"]["output"] = min(event["delivered"]["output"], event["billed"]["output"])
            client.xadd(key, {"e": json.dumps(event, separators=(",", ":"))})
        client.xdel(key, entry)
        return str(event["request_id"])
    return ""
