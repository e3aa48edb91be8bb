"""Routes of calibrations: what was measured, and what measuring cost. It owns their form on the wire."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field, WithJsonSchema

from billing.accounts import audit_log
from billing.api.answer import Listing
from billing.api.capacity_answers import AbsorbedAnswer, CalibrationAnswer
from billing.api.contract_shapes import Part, UnitsPerSecond, moment, part
from billing.api.control import Control
from billing.api.fields import COUNT_MAX, MS_MAX, Body, Label, Name
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.catalogue import pools
from billing.catalogue.models import Weights
from billing.contracts import calibrations
from billing.contracts.calibrations import Calibration, Measured, SpentTokens
from billing.contracts.position import units
from billing.fleet.engine_instances import read_instances
from billing.fleet.registered import read_registered

router = APIRouter(prefix="/admin/v1/calibrations", tags=["calibrations"], dependencies=[KNOWN_QUERY])

Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]
Share = Annotated[float, Field(allow_inf_nan=False, ge=-1000, le=1000)]
Milliseconds = Annotated[float, Field(allow_inf_nan=False, ge=0, le=MS_MAX)]
TargetMs = Annotated[int, Field(ge=1, le=3_600_000)]


# The rule is in `billing.contracts.calibrations`.
MeasuredWeight = Annotated[
    int, WithJsonSchema({"type": "integer", "minimum": 0, "maximum": calibrations.WEIGHT_MU_MAX})
]


class WeightsMeasured(Body):
    """Milliunits per token."""

    w_in_mu: MeasuredWeight
    w_cached_mu: MeasuredWeight
    w_out_mu: MeasuredWeight


class StepBody(Body):
    """One mix as it was measured. `error`: the relative error of the fit in its time. Times are null if too
    few were seen.
    """

    mix: Label
    held_back: bool
    sequences: Count
    seconds: Annotated[float, Field(allow_inf_nan=False, gt=0, le=86_400)]
    uncached: Count
    cached: Count
    output: Count
    tpot_ms: Milliseconds | None
    ttft_ms: Milliseconds | None
    error: Share


class NewCalibration(Body):
    """What was measured on one instance of a pool. Capacity is a decimal, `error` a fraction: 0.034 is 3.4 %.
    `reweigh`: confirms that signed contracts may count in units that buy something else.
    """

    pool: Name
    model: Name
    weights: WeightsMeasured
    capacity_units_per_second: UnitsPerSecond
    sequences: Annotated[int, Field(ge=1, le=100_000)]
    tpot_target_ms: TargetMs
    ttft_target_ms: TargetMs
    hardware: Label
    engine_version: Label
    error: Part
    instance: Name | None = None
    steps: Annotated[tuple[StepBody, ...], Field(max_length=100, strict=False)] = ()
    remarks: Annotated[
        tuple[Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$")], ...],
        Field(max_length=20, strict=False),
    ] = ()
    reweigh: bool = False


class SpentBody(Body):
    """What an engine produced while it was measured, whether or not that led to a calibration. Sending the
    same `run` again changes nothing.
    """

    run: Annotated[str, Field(pattern=r"^[0-9a-f]{12,32}$")]
    model: Name
    instance: Name
    epoch: Label
    prompt: Count
    cached: Count
    output: Count
    started_ms: Annotated[int, Field(ge=0, le=MS_MAX)]


@router.post("", status_code=201, response_model=CalibrationAnswer)
def record(body: NewCalibration, control: Control, response: Response) -> dict[str, Any]:
    """Store a measurement. Its weights become the model's, its capacity is what an instance of the pool can
    do.
    """
    measured = Measured(
        pool=body.pool,
        model=body.model,
        weights=Weights(body.weights.w_in_mu, body.weights.w_cached_mu, body.weights.w_out_mu),
        capacity_mu_s=body.capacity_units_per_second,
        sequences=body.sequences,
        tpot_target_ms=body.tpot_target_ms,
        ttft_target_ms=body.ttft_target_ms,
        hardware=body.hardware,
        engine_version=body.engine_version,
        error_permille=body.error,
        report=body.model_dump(mode="json", include={"instance", "steps", "remarks"}),
    )
    there = [
        entry
        for entry in read_registered(control.redis)
        if entry.pool == body.pool and entry.status != "down" and not entry.is_provider
    ]
    with control.changing(response) as connection:
        return _shown(calibrations.record(connection, measured, registered=len(there), reweigh=body.reweigh))


@router.post("/absorbed", status_code=201, response_model=AbsorbedAnswer)
def absorb(body: SpentBody, control: Control, response: Response) -> dict[str, Any]:
    """Account for tokens that an engine produced while it was measured: nobody is billed for them. If the
    engine counts its requests, the audit reads these from it, and nothing is recorded here.
    """
    spent = SpentTokens(**body.model_dump())
    there = read_instances(control.redis).instances
    calibrations.require_live(spent, {each.instance: each.model for each in there})
    if any(each.counts for each in there if each.instance == spent.instance):
        return {"run": spent.run, "prompt": spent.prompt, "output": spent.output, "recorded": False}
    with control.changing(response) as connection:
        recorded = calibrations.absorb(connection, spent)
        if recorded:
            audit_log.append(connection, "ledger", spent.instance, body.model_dump(), tenant_id=None)
    return {"run": spent.run, "prompt": spent.prompt, "output": spent.output, "recorded": recorded}


@router.get("", response_model=Listing[CalibrationAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    pool: Annotated[Name | None, Query(description="Of this pool only.")] = None,
    model: Annotated[Name | None, Query(description="Of this model only.")] = None,
) -> dict[str, Any]:
    """All calibrations, newest first; the first of a pool is in force."""
    with control.reading() as connection:
        pools.require_named(connection, pool)
        return listing(calibrations.list_page(connection, asked, pool=pool, model=model), _shown)


def _shown(found: Calibration) -> dict[str, Any]:
    weights = found.weights
    return {
        "calibration": found.calibration_id,
        "pool": found.pool,
        "model": found.model,
        "weights": {
            "version": found.weights_version,
            "w_in_mu": weights.w_in_mu,
            "w_cached_mu": weights.w_cached_mu,
            "w_out_mu": weights.w_out_mu,
        },
        "capacity_units_per_second": units(found.capacity_mu_s),
        "sequences": found.sequences,
        "tpot_target_ms": found.tpot_target_ms,
        "ttft_target_ms": found.ttft_target_ms,
        "hardware": found.hardware,
        "engine_version": found.engine_version,
        "error": part(found.error_permille),
        **found.report,
        "created": moment(found.created_ms),
    }
