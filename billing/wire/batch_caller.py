"""Who asks the batch service for something: the gateway has checked the caller's API key, and says so in
headers beside the service key. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_TENANT: Final = "x-taas-tenant"
_PROJECT: Final = "x-taas-project"
_KEY: Final = "x-taas-key-id"
_RESTRICTED: Final = "x-taas-restricted"


@dataclass(frozen=True, slots=True)
class BatchCaller:
    """A caller. What is stored belongs to its project. A key that is `restricted` to some models reaches only
    what it has made itself.
    """

    tenant: str
    project: str
    key_id: str
    restricted: bool

    @classmethod
    def read(cls, headers: Mapping[str, str]) -> "BatchCaller":
        """From a gateway's request. Raises KeyError."""
        return cls(headers[_TENANT], headers[_PROJECT], headers[_KEY], headers[_RESTRICTED] == "1")


def caller_headers(tenant: str, project: str, key_id: str, *, restricted: bool) -> dict[str, str]:
    """The headers that say it."""
    return {_TENANT: tenant, _PROJECT: project, _KEY: key_id, _RESTRICTED: "1" if restricted else "0"}
