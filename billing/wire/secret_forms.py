"""The forms of secrets that both gateways and billing must know. Pure."""

from typing import Final

ADMIN_KEY_PREFIX: Final = "sk-admin-"
# 32 bytes are 43 characters of URL-safe base 64.
ADMIN_KEY_FORM: Final = ADMIN_KEY_PREFIX + r"[A-Za-z0-9_-]{43}"
