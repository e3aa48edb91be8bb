"""An own stack with many tenants. They are written to SQL in bulk: the admin API would take half an hour for
100,000 of them.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from loadtest.own_stack import TENANT, OwnStack, Served

# Each new tenant is a copy of the first one: its policy, its limits, a project and a key. Billing writes the
# whole catalogue to Redis again once the version in SQL is not the one in Redis.
_STATEMENTS: Final = (
    # Without the audit log's triggers: their time grows with the square of the entries of a transaction.
    "set local session_replication_role = replica",
    "create temporary table made (n int, id text) on commit drop",
    "insert into made select n, left(md5(%(seed)s || n), 24) from generate_series(1, %(count)s) n",
    "insert into tenant (tenant_id, name, kind, on_demand, redis_down, weight) "
    "select 'ten_' || id, name || '-' || n, kind, on_demand, redis_down, weight "
    "from made, tenant where name = %(first)s",
    "insert into project (project_id, tenant_id, name) "
    "select 'prj_' || id, 'ten_' || id, 'default' from made",
    "insert into api_key (key_id, hash, display, tenant_id, project_id) "
    "select 'key_' || id, encode(sha256((%(secret)s || n)::bytea), 'hex'), 'sk-…', 'ten_' || id, "
    "'prj_' || id from made",
    "insert into quota_limit (tenant_id, model, requests_per_minute, units_per_minute, concurrency) "
    "select 'ten_' || id, model, requests_per_minute, units_per_minute, quota_limit.concurrency "
    "from made, quota_limit join tenant using (tenant_id) where name = %(first)s",
    "analyze tenant, project, api_key, quota_limit",
    "update projection_state set version = version + 1",
)


def add_tenants(database_url: str, count: int) -> list[str]:
    """Add copies of the tenant of an own stack; returns their keys. They are in Redis within some seconds."""
    import psycopg  # SQL is no business of who only imports this

    secret = f"sk-{secrets.token_urlsafe(24)}-"
    values = {"seed": secrets.token_hex(8), "secret": secret, "count": count, "first": TENANT}
    with psycopg.connect(database_url.replace("+psycopg", "", 1)) as connection:
        for statement in _STATEMENTS:
            connection.execute(statement, values if "%(" in statement else None)
    return [f"{secret}{number}" for number in range(1, count + 1)]


class ManyTenantsStack(OwnStack):
    """An own stack with so many tenants. Its gateways start once they can read all of them."""

    def __init__(
        self, folder: Path, models: list[Served], *, tenants: int, processes: int, under: Sequence[str]
    ) -> None:
        super().__init__(folder, models, processes=processes, under=under)
        self.tenants = tenants
        self.tenant_keys: list[str] = []

    def _set_up(self) -> None:
        super()._set_up()
        self.tenant_keys = [self.key, *add_tenants(self.database_url, self.tenants - 1)]
        # By the last key the gateways are asked whether they serve.
        self.key = self.tenant_keys[-1]
