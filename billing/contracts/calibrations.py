"""What instances of a pool can do, as measured. Each calibration is a row that stays; the newest one of a
pool is in force. It knows neither HTTP nor Redis.

Recording one sets the model's weights, and gives a pool without machines those that are registered. It also
absorbs the cost of measuring: the engine counted tokens that no tenant asked for.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select

from billing.catalogue import models, outbox, pools
from billing.catalogue.models import ModelChange, Weights
from billing.catalogue.names import new_id
from billing.catalogue.outbox import ChangeKind
from billing.contracts import store
from billing.contracts.commitments import lock_for_sale
from billing.contracts.lifecycle import OPERATOR
from billing.contracts.position import refuse_worse
from billing.contracts.reweigh import describe_worth, in_new_units, refuse_unsaid, worth_at_most, write_down
from billing.ledger.absorbed_event import AbsorbedEvent
from billing.ledger.absorbed_event import absorb as write_absorbed
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import Invalid, NotFound
from billing.schema.capacity import calibration as table
from billing.schema.catalogue import model_weights
from billing.wire.ending import Ending, OtherReason
from billing.wire.tokens import CounterPair
from billing.wire.usage_event import CapacityClass

CALIBRATION_PREFIX: Final = "cal_"
# Bounds of plausible values: no instance reads a hundred million tokens a second, and no token weighs a
# thousand times another.
CAPACITY_MU_S_MAX: Final = 10**11
WEIGHT_MU_MAX: Final = 10**7
# A fit with a greater error does not predict what a tenant will get.
ERROR_PERMILLE_MAX: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured on one instance. `error_permille`: the error with which the held-back mix was
    predicted.
    """

    pool: str
    model: str
    weights: Weights
    capacity_mu_s: int
    sequences: int
    tpot_target_ms: int
    ttft_target_ms: int
    hardware: str
    engine_version: str
    error_permille: int
    report: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration(Measured):
    """A calibration as stored in SQL."""

    calibration_id: str
    weights_version: int
    created_ms: int


_NEWEST_FIRST: Final[Order[Calibration]] = Order(
    "calibrations",
    lambda calibration: (calibration.created_ms, calibration.calibration_id),
    (int, str),
    (table.c.created_ms, table.c.calibration_id),
    descending=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpentTokens:
    """What an engine produced in one run of a measurement, by its counters. `run` names it, so that it is
    absorbed once.
    """

    run: str
    model: str
    instance: str
    epoch: str
    prompt: int
    cached: int
    output: int
    started_ms: int


def record(
    connection: Connection,
    measured: Measured,
    *,
    registered: int,
    reweigh: bool = False,
    at_ms: int | None = None,
) -> Calibration:
    """Store a calibration, set the model's weights, and give a pool without machines the `registered` ones.
    `at_ms`: as if it were recorded then. Raises Invalid, NotFound; Conflict if less was measured than is
    signed, or if a signed unit would buy something else and `reweigh` does not confirm it. Then nothing has
    changed.
    """
    _check(measured)
    if models.find(connection, measured.model).pool != measured.pool:
        raise Invalid(f"Model {measured.model!r} is not in pool {measured.pool!r}.", param="pool")
    now_ms = store.now_ms(connection) if at_ms is None else at_ms
    before = lock_for_sale(connection, measured.pool, now_ms)
    # After the pool is locked: of two concurrent measurements the second compares with what the first stored.
    model = models.find(connection, measured.model)
    if not reweigh:
        refuse_unsaid(before, model.weights, measured.weights)
    pool = pools.find(connection, measured.pool)
    if pool.instances == 0 and registered > 0:
        pool = replace(pool, instances=registered)
        pools.write(connection, pool, now_ms)
    after = replace(before, instances=pool.instances, capacity_mu_s=measured.capacity_mu_s)
    worth = worth_at_most(model.weights, measured.weights)
    what = describe_worth(worth) if worth > 1 else "Less was measured than before, and what is signed"
    refuse_worse(before, in_new_units(after, worth), now_ms, what=what, param="pool")
    changed = models.change(connection, model.name, ModelChange(weights=measured.weights))
    if changed.weights_version != model.weights_version:
        write_down(connection, before, model, changed, by=OPERATOR, now_ms=now_ms)
    for name in models.names_in_pool(connection, measured.pool):  # their entries have the capacity
        outbox.record(connection, ChangeKind.MODEL, name)
    columns = asdict(measured)
    del columns["weights"]
    if at_ms is not None:
        columns["created_ms"] = at_ms
    row = connection.execute(
        insert(table)
        .values(calibration_id=new_id(CALIBRATION_PREFIX), weights_version=changed.weights_version, **columns)
        .returning(table)
    ).one()
    return _calibration(row, changed.weights)


def list_page(
    connection: Connection, asked: PageRequest, *, pool: str | None = None, model: str | None = None
) -> Page[Calibration]:
    """Newest first: the first of a pool is the one that holds."""
    same = (model_weights.c.model == table.c.model) & (model_weights.c.version == table.c.weights_version)
    weights = (model_weights.c.w_in_mu, model_weights.c.w_cached_mu, model_weights.c.w_out_mu)
    query = select(table, *weights).join(model_weights, same)
    if pool is not None:
        query = query.where(table.c.pool == pool)
    if model is not None:
        query = query.where(table.c.model == model)
    return read_page(connection, query, _NEWEST_FIRST, _read, asked)


def absorb(connection: Connection, spent: SpentTokens) -> bool:
    """Account for the cost of measuring, once per run. Returns whether this was the first time. Raises
    NotFound for the model.
    """
    model = models.find(connection, spent.model)
    if spent.cached > spent.prompt:
        raise Invalid("More cached tokens than the prompts had.", param="cached")
    if spent.prompt == 0 and spent.output == 0:
        return False
    event = AbsorbedEvent(
        request_id=f"{CALIBRATION_PREFIX}{spent.run}",
        model=model.name,
        pool=model.pool,
        cell=model.cell,
        instance=spent.instance,
        epoch=spent.epoch,
        tokens=CounterPair(spent.prompt, spent.output),
        cached=spent.cached,
        reason=OtherReason.CALIBRATION,
        ending=Ending.COMPLETE,
        weights=model.versioned_weights(),
        started_ms=spent.started_ms,
        route=OtherReason.CALIBRATION.value,
        stream=True,
        class_=CapacityClass.FLEX.value,
    )
    return write_absorbed(connection, event)


def require_live(spent: SpentTokens, models_by_instance: dict[str, str]) -> None:
    """Raises NotFound or Invalid if no such instance of the model is registered: its tokens would be compared
    with nothing.
    """
    model = models_by_instance.get(spent.instance)
    if model is None:
        raise NotFound(
            f"There is no instance {spent.instance!r} now; `taas instance list` shows those that are.",
            param="instance",
        )
    if model != spent.model:
        raise Invalid(f"Instance {spent.instance!r} serves {model!r}.", param="model")


def _check(measured: Measured) -> None:
    weights = measured.weights
    if not 0 < weights.w_in_mu <= WEIGHT_MU_MAX or not 0 < weights.w_out_mu <= WEIGHT_MU_MAX:
        raise Invalid(
            f"Input and output weigh more than 0 and at most {WEIGHT_MU_MAX} milliunits a token.",
            param="weights",
        )
    if not 0 <= weights.w_cached_mu <= weights.w_in_mu:
        raise Invalid(
            "A cached token weighs 0 or more, and no more than one that is computed.", param="weights"
        )
    if not 0 < measured.capacity_mu_s <= CAPACITY_MU_S_MAX:
        most = CAPACITY_MU_S_MAX // 1000
        message = f"An instance does more than 0 and at most {most} units per second."
        raise Invalid(message, param="capacity_units_per_second")
    if not 0 <= measured.error_permille <= ERROR_PERMILLE_MAX:
        raise Invalid(
            f"A fit that is off by {measured.error_permille / 10:g} % predicts nothing; measure again, for "
            "longer, with the engine alone.",
            param="error",
        )


def _read(row: Row[Any]) -> Calibration:
    return _calibration(row, Weights(row.w_in_mu, row.w_cached_mu, row.w_out_mu))


def _calibration(row: Row[Any], weights: Weights) -> Calibration:
    columns = {column.name: row._mapping[column.name] for column in table.columns}
    return Calibration(**columns, weights=weights)
