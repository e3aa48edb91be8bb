"""What is answered of pools, calibrations, the plan, and what came of contracts."""

from pydantic import Field

from billing.api.answer import Answer, Decimal, Utc
from billing.api.catalogue_answers import WeightsAnswer


class RateSpan(Answer):
    """Units per second over a time; `until` null: without an end."""

    from_: Utc = Field(alias="from")
    until: Utc | None
    units: Decimal


class LivePool(Answer):
    """What serves in a pool now: `instances` it has, `registered` of these stand in the registry, `ready`
    of these serve.
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


class PoolAnswer(Answer):
    """What a pool has, owes and could sell now, in units per second. `registered` and `ready` null: Redis
    does not say.
    """

    pool: str
    instances: int
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


class StepAnswer(Answer):
    """One mix as it was measured; times null where too little was seen."""

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
    """A measurement of one instance. `error`: by what part of one the mix held back was predicted wrongly."""

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
    """`recorded`: whether it was now; not again for the same `run`, nor for an engine that tells its
    requests itself.
    """

    run: str
    prompt: int
    output: int
    recorded: bool


class PlanPeriod(Answer):
    """A time in which nothing changes: machines by use, units per second."""

    quarter: str
    from_: Utc = Field(alias="from")
    until: Utc | None
    machines: dict[str, int]
    capacity: Decimal
    signed: Decimal
    free: Decimal
    short: Decimal


class PoolPlan(Answer):
    """`own_use`: what its machines do when nobody has taken them."""

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
    """Requests that the contract had room for, and that this limit of its tenant or key refused."""

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
    """By contract and minute, and their sums."""

    from_: Utc = Field(alias="from")
    until: Utc
    data: list[ContractMinute]
    total: list[ContractWork]


class ScrapeTarget(Answer):
    """As Prometheus' HTTP service discovery wants it."""

    targets: list[str]
    labels: dict[str, str]


class HealthAnswer(Answer):
    """`projection_pending`: changes of which gateways have not been told; null: the database does not
    answer.
    """

    status: str
    database: str
    redis: str
    projection_pending: int | None


class StopAnswer(Answer):
    """The gateways were told."""

    request_id: str
    announced: bool
