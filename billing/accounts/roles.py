"""The roles that a caller of the admin API can have, and who may give them. Pure.

A role of the platform is for the operator's people and sees every tenant. A role of a tenant sees and changes
only what is that tenant's. What each may call is `billing.api.rights`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """`ROOT` has the admin key of the settings, `SERVICE` the service key, `NOBODY` no key of ours."""

    ROOT = "root"
    OPERATOR = "operator"
    FINANCE = "finance"
    AUDITOR = "auditor"
    ADMIN = "admin"
    MEMBER = "member"
    BILLING = "billing"
    VIEWER = "viewer"
    SERVICE = "service"
    NOBODY = "nobody"


OF_PLATFORM: Final = frozenset({Role.OPERATOR, Role.FINANCE, Role.AUDITOR})
OF_TENANT: Final = frozenset({Role.ADMIN, Role.MEMBER, Role.BILLING, Role.VIEWER})
# Nobody gives rights that it has not got itself.
MAY_GIVE: Final[Mapping[Role, frozenset[Role]]] = {
    Role.ROOT: OF_PLATFORM | OF_TENANT,
    Role.OPERATOR: OF_TENANT | {Role.OPERATOR, Role.AUDITOR},
    Role.ADMIN: OF_TENANT,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `actor`: the id of its admin key, or the role where that has one key only. `tenant_id`: the
    only tenant whose things it sees; None: all.
    """

    actor: str
    role: Role
    tenant_id: str | None = None


NOBODY: Final = Caller(Role.NOBODY.value, Role.NOBODY)
