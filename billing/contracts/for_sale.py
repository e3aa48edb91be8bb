"""What cannot be sold: a model without a price is unknown to external tenants, so no contract on it is signed
with one. Contracts that were signed stay as they are.
"""

from sqlalchemy import Connection

from billing.catalogue import models, tenants
from billing.catalogue.price_book import for_sale_from
from billing.contracts import store
from billing.refusals import Conflict


def require_for_sale(connection: Connection, contract_id: str) -> None:
    """Raises Conflict if the tenant of this contract is external and no model of its pool has a price."""
    terms = store.find(connection, contract_id).terms
    if tenants.find(connection, terms.tenant_id).kind == "internal":
        return
    in_pool = models.names_in_pool(connection, terms.pool)
    if not for_sale_from(connection).keys() & set(in_pool):
        named = in_pool[0] if in_pool else "MODEL"
        raise Conflict(
            f"No model of pool {terms.pool!r} has a price, so external tenants cannot use what it sells. "
            f"`taas price set --model {named} …` sells it, `--free` gives it away.",
            param="pool",
            code="not_for_sale",
        )
