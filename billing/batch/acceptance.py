"""Whether a batch may begin: whether its caller may use the model, whether a private model takes batches, and
whether all of it fits into what the limits allow until it expires, beside the batches that are open. What
fits is held: it counts for the next batch as long as this one is open.

It reads the catalogue as billing writes it. Each line meets the gateway's own checks later; this is so that
what can never succeed is refused as a whole, and says why.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, case, exists, select, true

from billing.batch.validation import Checked, LineError
from billing.schema.batches import batch
from billing.schema.catalogue import api_key, model, model_audience, model_weights, quota_limit, tenant
from billing.wire.batch_statuses import OPEN_STATUSES
from billing.wire.limits import FIELDS, WHILE_OPEN, LimitEntry, LimitKind, Limits
from billing.wire.routes import RouteFacts

_UNKNOWN: Final = "The model '{}' does not exist or you do not have access to it."
_NAMES: Final = {
    LimitKind.REQUESTS: "requests",
    LimitKind.TOKENS: "tokens",
    LimitKind.UNITS: "thousandths of a work unit",
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the lines may take at most: tokens, and work in thousandths of a unit."""

    requests: int
    tokens: int
    mu: int

    def of(self, kind: LimitKind) -> int:
        """As a limit of this kind counts it."""
        return {LimitKind.REQUESTS: self.requests, LimitKind.TOKENS: self.tokens}.get(kind, self.mu)


class NotAccepted(Exception):
    """Why not, as an error of the batch."""

    def __init__(self, error: LineError) -> None:
        super().__init__(error.code)
        self.error = error


def accept(
    connection: Connection, tenant_id: str, key_id: str, route: RouteFacts, checked: Checked, window_s: int
) -> Estimate:
    """What this batch may take; it fits. Raises NotAccepted."""
    name = str(checked.model)
    found = _model(connection, name, tenant_id, key_id)
    if found is None:
        raise NotAccepted(LineError("model_not_found", _UNKNOWN.format(name[:256]), param="model"))
    if found.owner is not None and not found.takes_batches:
        message = f"The model '{name}' takes no batches: it is private, and its owner has not allowed them."
        raise NotAccepted(LineError("model_takes_no_batches", message, param="model"))
    if route.offered_as.value not in found.routes:
        message = f"The model '{name}' is not served on {route.path}."
        raise NotAccepted(LineError("model_route_unsupported", message, param="endpoint"))
    output = checked.output_tokens + checked.unbounded * found.default_max_tokens
    output = min(output, len(checked.places) * found.context_tokens)
    work_mu = checked.input_tokens * found.w_in_mu + output * found.w_out_mu
    estimate = Estimate(len(checked.places), checked.input_tokens + output, work_mu)
    held = _held(connection, tenant_id, name)
    for whose, limits in _limits(connection, tenant_id, key_id, name):
        _check_fits(whose, limits, estimate, held, window_s)
    return estimate


def _check_fits(whose: str, limits: Limits, estimate: Estimate, held: Estimate, window_s: int) -> None:
    for limit in limits.all:
        if limit.window_s == WHILE_OPEN or limit.kind not in _NAMES:
            continue
        allowed = limit.amount * max(window_s, limit.window_s) // limit.window_s
        wanted, others = estimate.of(limit.kind), held.of(limit.kind)
        if wanted + others > allowed:
            message = (
                f"This batch may take {wanted} {_NAMES[limit.kind]}, your open batches {others}; "
                f"{whose} limit allows {allowed} until the batch would expire. "
            )
            message += (
                "Split the batch, or lower the lines' output limits."
                if wanted > allowed
                else "Try again when open batches have ended."
            )
            raise NotAccepted(LineError("limit_exceeded", message))


def _model(connection: Connection, name: str, tenant_id: str, key_id: str) -> Row[Any] | None:
    """The model if this caller may see it, as a gateway decides it. The same statements are run for a model
    that does not exist and for one that is not this caller's, so that time does not tell them apart.
    """
    weighed = (model_weights.c.model == model.c.name) & (model_weights.c.version == model.c.weights_version)
    named = exists().where(model_audience.c.model == model.c.name, model_audience.c.tenant_id == tenant_id)
    internal = exists().where(tenant.c.tenant_id == tenant_id, tenant.c.kind == "internal")
    visible = case(
        (model.c.owner.is_not(None), model.c.owner == tenant_id),
        (model.c.visible == "tenants", named),
        (model.c.visible == "internal", internal),
        else_=true(),
    )
    query = select(model, model_weights.c.w_in_mu, model_weights.c.w_out_mu).join(model_weights, weighed)
    found = connection.execute(
        query.where(model.c.name == name, model.c.status == "active", visible)
    ).one_or_none()
    allowed = connection.execute(select(api_key.c.models).where(api_key.c.key_id == key_id)).scalar_one()
    return found if allowed is None or name in allowed else None


def _held(connection: Connection, tenant_id: str, name: str) -> Estimate:
    """What the tenant's open batches of this model may still take. The tenant is locked, so that two that are
    accepted at one moment see each other.
    """
    locked = select(tenant.c.tenant_id).where(tenant.c.tenant_id == tenant_id)
    # Not against the rows that refer to it, one of which this transaction may have written.
    connection.execute(locked.with_for_update(key_share=True))
    query = select(batch).where(
        batch.c.tenant_id == tenant_id, batch.c.model == name, batch.c.status.in_(OPEN_STATUSES)
    )
    requests = tokens = work_mu = 0
    for row in connection.execute(query):
        left = row.total - row.completed - row.failed
        requests += left
        tokens += row.estimate_tokens * left // max(1, row.total)
        work_mu += row.estimate_mu * left // max(1, row.total)
    return Estimate(requests, tokens, work_mu)


def _limits(connection: Connection, tenant_id: str, key_id: str, name: str) -> list[tuple[str, Limits]]:
    query = select(quota_limit).where(
        quota_limit.c.tenant_id == tenant_id,
        quota_limit.c.key_id.is_(None) | (quota_limit.c.key_id == key_id),
        quota_limit.c.model.in_([name, "*"]),
    )
    rows = connection.execute(query).mappings().all()
    found = []
    for whose, key in (("your account's", None), ("this key's", key_id)):
        of_model: dict[str, LimitEntry] = {
            row["model"]: {field.name: row[field.name] for field in FIELDS}
            for row in rows
            if row["key_id"] == key
        }
        found.append((whose, Limits.of_entries(of_model.get(name), of_model.get("*"))))
    return found
