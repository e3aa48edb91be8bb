"""The salt of each tenant in the engines' prefix caches. It prevents a tenant from telling by timing what
another tenant has sent.
"""

import hashlib
import hmac
from typing import Final

from gateway.catalogue.feed import Catalogue

_KEPT_MAX: Final = 100_000


class CacheSalts:
    """Salts derived from the catalogue's secret, and cached."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._kept: dict[tuple[str, str], str] = {}

    def of(self, tenant: str) -> str:
        """Hex."""
        secret = self._catalogue.cache_salt
        salt = self._kept.get((secret, tenant))
        if salt is None:
            salt = hmac.digest(secret.encode(), tenant.encode(), hashlib.sha256).hex()
            if len(self._kept) > _KEPT_MAX:
                self._kept.clear()
            self._kept[secret, tenant] = salt
        return salt
