"""Removes entries that nobody renews from `taas:instances`, so that the list does not grow with every worker
that ever ran.

It owns which entries are removed. It knows no engine and no table: its caller has stored the counters of
these entries.
"""

from pathlib import Path
from typing import Final

import redis

from billing.moments import DAY_MS
from billing.wire import redis_clock, redis_keys
from billing.wire.instance_entry import lease_of

# A worker that returns by then finds its own entry, and people see what became of an instance.
_KEPT_MS: Final = DAY_MS


def forget_lapsed(client: redis.Redis) -> int:
    """Remove entries that lapsed a day ago by Redis's clock; returns how many. Entries added by hand have no
    lease; unreadable ones are left for a person to see. Raises redis.RedisError.
    """
    with client.pipeline(transaction=False) as read:
        read.time()
        read.hgetall(redis_keys.INSTANCES)
        clock, entries = read.execute()
    now_ms = redis_clock.milliseconds(clock)
    lapsed = {name: raw for name, raw in entries.items() if 0 < (lease_of(raw) or 0) < now_ms - _KEPT_MS}
    if not lapsed:
        return 0
    client.hdel(redis_keys.EVIDENCE, *lapsed)
    client.hdel(redis_keys.RESTARTS, *lapsed)
    client.hdel(redis_keys.FENCED, *lapsed)
    forget = client.register_script(_script())
    return sum(int(forget(keys=[redis_keys.INSTANCES], args=[name, raw])) for name, raw in lapsed.items())


def _script() -> str:
    return (Path(__file__).parent / "lua" / "forget_instance.lua").read_text(encoding="utf-8")
