"""The answers about pools, calibrations, the plan, and what came of contracts."""

from pydantic import Field

from billing.api.answer import Answer, Decimal, Ms, Utc
from billing.api.catalogue_answers import WeightsAnswer
from billing.autoscaling.decide import Why


class RateSpan(Answer):
    """Units per second over a time; `until` null: without an end."""

    from_: Utc = Field(alias="from")
    until: Utc | None
    units: Decimal


class LivePool(Answer):
    """What serves in a pool now: its `instances`, how many of them are `registered`, and how many are
    `ready`.
    """

    pool: str
    cell: str
    models: list[str]
    instances: int
    registered: int
    ready: int
    statuses: dict[str, int]
    running: int
    waiting: int


class AutoscalingAnswer(Answer):
    """`desired`: so many instances should run now; null until the first decision, seconds after it was set.
    `why`: what decided that.
    """

    pool: str
    min: int
    max: int
    desired: int | None
    why: Why | None
    decided_ms: Ms | None


class PoolAnswer(Answer):
    """What a pool has, owes and could sell now, in units per second. `declared`: the instances that it was
    set to have. `registered` and `ready` are null if Redis does not answer.
    """

    pool: str
    instances: int
    declared: int
    registered: int | None
    ready: int | None
    taken: int
    headroom: Decimal
    set_aside: Decimal
    units_per_instance: Decimal | None
    capacity: Decimal
    reserved: Decimal
    free: Decimal
    contracts: int
    shortfalls: list[RateSpan]


class LaunchAnswer(Answer):
    """What a launcher is to run of a pool: `instances` of `model`, each on `nodes` machines."""

    pool: str
    model: str
    instances: int
    gpus: int
    nodes: int
    resources: dict[str, int]
    path: str | None
    engine_args: list[str]


class LaunchNow(LaunchAnswer):
    """`wanted`: so many are to run now; of a pool that is scaled what was decided last, else `instances`."""

    wanted: int


class StepAnswer(Answer):
    """One mix as it was measured. Times are null if too few were seen."""

    mix: str
    held_back: bool
    sequences: int
    seconds: float
    uncached: int
    cached: int
    output: int
    tpot_ms: float | None
    ttft_ms: float | None
    error: float


class CalibrationAnswer(Answer):
    """A measurement of one instance. `error`: the relative error with which the held-back mix was
    predicted.
    """

    calibration: str
    pool: str
    model: str
    weights: WeightsAnswer
    capacity_units_per_second: Decimal
    sequences: int
    tpot_target_ms: int
    ttft_target_ms: int
    hardware: str
    engine_version: str
    error: Decimal
    instance: str | None = None
    steps: list[StepAnswer] = Field(default_factory=list)
    remarks: list[str] = Field(default_factory=list)
    created: Utc


class AbsorbedAnswer(Answer):
    """`recorded`: whether this call recorded it. It does not if the same `run` was recorded before, or if the
    engine counts its own requests.
    """

    run: str
    prompt: int
    output: int
    recorded: bool


class PlanPeriod(Answer):
    """A time in which nothing changes: instances by use, units per second."""

    quarter: str
    from_: Utc = Field(alias="from")
    until: Utc | None
    machines: dict[str, int]
    capacity: Decimal
    signed: Decimal
    free: Decimal
    short: Decimal


class PoolPlan(Answer):
    """`own_use`: the use of its machines while no reclaim has taken them."""

    pool: str
    own_use: str
    instances: int
    units_per_instance: Decimal | None
    periods: list[PlanPeriod]


class PlanAnswer(Answer):
    """What each pool's machines are for."""

    from_: Utc = Field(alias="from")
    quarters: int
    data: list[PoolPlan]


class Limited(Answer):
    """Requests that the contract had room for and that this limit of its tenant or key refused."""

    requests: int
    concurrency: int
    cancels: int


class ContractWork(Answer):
    """What came of a contract; work is in units."""

    contract: str
    tenant: str
    tenant_name: str | None
    pool: str
    assigned: Decimal
    used: Decimal
    lent: Decimal
    borrowed: Decimal
    refused: int
    limited: Limited
    shortfall: Decimal
    missing: Decimal


class ContractMinute(ContractWork):
    """The same within one minute."""

    minute: Utc


class CapacityAnswer(Answer):
    """Figures by contract and minute, and their sums."""

    from_: Utc = Field(alias="from")
    until: Utc
    data: list[ContractMinute]
    total: list[ContractWork]


class ScrapeTarget(Answer):
    """A target in the form of Prometheus' HTTP service discovery."""

    targets: list[str]
    labels: dict[str, str]


class HealthAnswer(Answer):
    """`projection_pending`: changes that gateways have not got yet; null if the database does not answer."""

    status: str
    database: str
    redis: str
    projection_pending: int | None


class StopAnswer(Answer):
    """The stop was sent to the gateways."""

    request_id: str
    announced: bool
