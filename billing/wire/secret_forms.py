"""The forms of secrets that both gateways and billing must know. Pure."""

from typing import Final

# An API key's, and what an admin key begins with, too.
API_KEY_PREFIX: Final = "sk-"
ADMIN_KEY_PREFIX: Final = "sk-admin-"
# 32 bytes are 43 characters of URL-safe base 64.
ADMIN_KEY_FORM: Final = ADMIN_KEY_PREFIX + r"[A-Za-z0-9_-]{43}"
# What a tenant's API key is told where it has no rights: the same for every such key, so that it reveals
# nothing about this one.
ADMIN_KEY_REQUIRED: Final = "A tenant's API key has no rights here; this takes an admin key."
