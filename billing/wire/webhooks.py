"""How what we send to others' servers is signed, as the Standard Webhooks specification has it
(https://www.standardwebhooks.com), and when it is sent again. Pure.
"""

import base64
import hashlib
import hmac
import secrets
from typing import Final

_SECRET_BYTES: Final = 32
_PREFIX: Final = "whsec_"
_RETRY_MS_LEAST: Final = 5_000
_RETRY_MS_MOST: Final = 3_600_000


def new_secret() -> str:
    """What signs; the receiver has it too."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed_headers(secret: str, message_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """The headers of a message. A repetition has the same id."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": _signature(secret, message_id, at_s, body),
    }


def retry_after_ms(attempts: int) -> int:
    """The pause after so many failed attempts before this one: it doubles, up to an hour."""
    return min(_RETRY_MS_MOST, _RETRY_MS_LEAST << min(attempts, 20))


def _signature(secret: str, message_id: str, at_s: int, body: bytes) -> str:
    """HMAC-SHA256 over id, time and body."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signed = b".".join((message_id.encode(), str(at_s).encode(), body))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
