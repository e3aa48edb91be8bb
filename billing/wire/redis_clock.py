"""Redis's clock. Leases, requests and prices use it, because every process of the product asks the same
one.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis


def milliseconds(answer: Any) -> int:
    """What TIME answers (seconds, microseconds; as numbers or as bytes), in milliseconds since 1970."""
    seconds, micros = answer
    return int(seconds) * 1000 + int(micros) // 1000


def now_ms(client: "redis.Redis") -> int:
    """Milliseconds since 1970. Raises redis.RedisError."""
    return milliseconds(client.time())
