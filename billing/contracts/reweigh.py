"""New weights for a model with signed contracts in its pool. Contracts are in units, and the weights say what
a unit buys.

It owns when such a change needs confirmation, what a signed unit may be worth afterwards, and that each
contract's history records it. It decides nothing about capacity.
"""

from dataclasses import replace
from fractions import Fraction
from typing import Final

from sqlalchemy import Connection

from billing.catalogue import adapters, models
from billing.catalogue.models import Model, ModelChange, Weights
from billing.contracts import store
from billing.contracts.commitments import lock_for_sale, lock_position, read_position
from billing.contracts.position import Holding, Position, refuse_worse, units
from billing.contracts.terms import Step
from billing.refusals import Conflict

CHANGE: Final = "reweighed"
# Two measurements of one engine differ by a few percent: that does not change what a unit buys.
_SAID_ABOVE: Final = Fraction(1, 10)
_NAMED_MAX: Final = 20
_KINDS: Final = {"input": "w_in_mu", "cached": "w_cached_mu", "output": "w_out_mu"}


def change_model(
    connection: Connection, name: str, wanted: ModelChange, *, reweigh: bool, by: str, now_ms: int
) -> Model:
    """Like `models.change`, which knows no contracts. Raises Conflict if new weights change what a signed
    unit buys and that is not confirmed, or if signed contracts might not fit any more.
    """
    pool = models.find(connection, name).pool
    if wanted.status == "retired":
        refuse_retired_under_contract(connection, name, pool, now_ms)
    if wanted.status is not None:
        adapters.check_status(connection, name, wanted.status)
    # `lock_for_sale` inserts the pool's row. Lock only if the pool is calibrated: an uncalibrated pool cannot
    # have contracts, and in a calibrated one somebody may be signing now.
    if wanted.weights is None or read_position(connection, pool, now_ms).capacity_mu_s is None:
        return models.change(connection, name, wanted)
    position = lock_for_sale(connection, pool, now_ms)
    model = models.find(connection, name)
    if not reweigh:
        refuse_unsaid(position, model.weights, wanted.weights)
    worth = worth_at_most(model.weights, wanted.weights)
    refuse_worse(position, in_new_units(position, worth), now_ms, what=describe_worth(worth), param="weights")
    changed = models.change(connection, name, wanted)
    if changed.weights_version != model.weights_version:
        write_down(connection, position, model, changed, by=by, now_ms=now_ms)
    return changed


def refuse_retired_under_contract(connection: Connection, name: str, pool: str, now_ms: int) -> None:
    """Raises Conflict, naming them, where contracts stand in the pool and no other model of it is left to
    use them for.
    """
    position = lock_position(connection, pool, now_ms)
    others = [each for each in models.list_all(connection) if each.pool == pool and each.status == "active"]
    if any(each.name != name for each in others) or not position.holdings:
        return
    ids = [held.contract_id for held in position.holdings]
    more = f" and {len(ids) - _NAMED_MAX} more" if len(ids) > _NAMED_MAX else ""
    raise Conflict(
        f"Contracts stand on {name}: {', '.join(ids[:_NAMED_MAX])}{more}. They end by notice; retire it "
        "when they have ended.",
        param="status",
        code="under_contract",
    )


def refuse_unsaid(position: Position, old: Weights, new: Weights) -> None:
    """Raises Conflict if something is signed and a kind of token would become dearer or cheaper by more than
    a tenth.
    """
    signed = len(position.holdings)
    moved = [
        f"{kind} {units(was)} → {units(now)}"
        for kind, was, now in _pairs(old, new)
        if abs(now - was) > was * _SAID_ABOVE
    ]
    if not signed or not moved:
        return
    stand = "1 contract is" if signed == 1 else f"{signed} contracts are"
    raise Conflict(
        f"A unit would buy something else in pool {position.pool!r}: units a token {', '.join(moved)}, and "
        f"{stand} signed by the old weights. "
        "If what is signed is to count in the new units, say so: the same again with `--reweigh` "
        "(`reweigh`: true); it is written "
        "into the history of each contract, and `taas contract amend` changes its units. If not, keep the "
        "weights that are: nothing has changed.",
        param="reweigh",
        code="reweighs",
    )


def worth_at_most(old: Weights, new: Weights) -> Fraction:
    """How many new units a signed unit may need, whatever its holder asks for: at least 1.

    A kind that weighed nothing bought any number of tokens. No capacity covers that, so it does not count
    here.
    """
    return max([Fraction(1), *(Fraction(now, was) for _, was, now in _pairs(old, new) if was)])


def describe_worth(worth: Fraction) -> str:
    """The beginning of a refusal: what does not fit."""
    return f"What is signed may be worth up to {float(worth):.3g} times as many of the new units, and that"


def in_new_units(position: Position, worth: Fraction) -> Position:
    """The pool's position with its contracts in new units, rounded up."""
    return replace(position, holdings=tuple(_scaled(held, worth) for held in position.holdings))


def write_down(
    connection: Connection, position: Position, before: Model, after: Model, *, by: str, now_ms: int
) -> None:
    """Record the change in the history of each contract that holds; the caller has locked the pool."""
    detail = {"model": after.name, "from": before.versioned_weights(), "to": after.versioned_weights()}
    for held in sorted(position.holdings, key=lambda each: each.contract_id):
        contract = store.lock(connection, held.contract_id)
        if not contract.over(now_ms):
            store.note(connection, contract, CHANGE, detail, by=by, now_ms=now_ms)


def _pairs(old: Weights, new: Weights) -> list[tuple[str, int, int]]:
    return [(kind, getattr(old, field), getattr(new, field)) for kind, field in _KINDS.items()]


def _scaled(held: Holding, worth: Fraction) -> Holding:
    steps = tuple(
        Step(step.from_ms, -(-step.mu_s * worth.numerator // worth.denominator)) for step in held.steps
    )
    return replace(held, steps=steps)
