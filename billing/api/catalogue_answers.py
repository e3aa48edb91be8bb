"""The answers about tenants, projects, keys, limits, models, prices and instances."""

from typing import Any, Literal

from pydantic import Field, create_model

from billing.api.answer import Answer, Ms, Usd
from billing.api.tenant_shapes import RedisDown
from billing.catalogue.api_keys import Status as KeyStatus
from billing.catalogue.models import Status as ModelStatus
from billing.catalogue.projects import Status as ProjectStatus
from billing.catalogue.tenants import Kind
from billing.catalogue.tenants import Status as TenantStatus
from billing.wire.limits import FIELDS


class TenantAnswer(Answer):
    """`tenant` is the id, as in usage events."""

    tenant: str
    name: str
    kind: Kind
    status: TenantStatus
    on_demand: bool
    redis_down: RedisDown
    weight: int
    time_zone: str
    retain_answers_s: int
    created_ms: Ms
    updated_ms: Ms


class ProjectAnswer(Answer):
    """`project` is the id."""

    project: str
    name: str
    status: ProjectStatus
    tenant: str
    tenant_name: str
    created_ms: Ms


class KeyAnswer(Answer):
    """A key without its secret. `models` null: all models that its tenant may use."""

    key_id: str
    display: str
    name: str | None
    tenant: str
    tenant_name: str
    project: str
    project_name: str
    status: KeyStatus
    expires_at_ms: Ms | None
    revoked_ms: Ms | None
    models: list[str] | None
    last_used_ms: Ms | None
    created_ms: Ms


class KeyMade(KeyAnswer):
    """`key` is only shown in this answer. It is null if the answer is repeated for an `Idempotency-Key`."""

    key: str | None


class KeyRotated(KeyMade):
    """The new key, and the old one as it is now."""

    old: KeyAnswer


class _LimitOf(Answer):
    tenant: str
    tenant_name: str
    key_id: str | None
    model: str


_AMOUNTS: Any = {each.name: (int | None, Field(description=each.words)) for each in FIELDS}


class LimitAnswer(create_model("_LimitAmounts", __base__=_LimitOf, **_AMOUNTS)):  # type: ignore[misc]
    """The limits of a tenant or of one key; null is no limit. Units are whole work units."""

    updated_ms: Ms


class LimitSet(LimitAnswer):
    """`warnings`: contracts that this limit could undercut."""

    warnings: list[str]


class WeightsAnswer(Answer):
    """Milliunits per token; a usage event names the version."""

    version: int
    w_in_mu: int
    w_cached_mu: int
    w_out_mu: int


class ModelAnswer(Answer):
    """Tenants by id, with their names in `tenant_names`. `for_sale_from_ms`: when it has a price from; null:
    external tenants cannot see it.
    """

    name: str
    status: ModelStatus
    pool: str
    cell: str
    visible: Literal["everyone", "internal"] | list[str]
    owner: str | None
    tenant_names: dict[str, str]
    routes: list[str]
    engine_model: str
    context_tokens: int
    vocabulary_tokens: int | None
    default_max_tokens: int
    weights: WeightsAnswer
    chat_template_kwargs: list[str]
    max_body_bytes: int | None
    takes_batches: bool
    for_sale_from_ms: Ms | None
    created_ms: Ms
    updated_ms: Ms


class AdapterAnswer(Answer):
    """`model` is what its owner asks for. `loaded`: the instances that serve it now, with the start of the
    SHA-256 of the files that each has loaded. `refused`: those that could not load it, and why.
    """

    model: str
    base: str
    path: str
    owner: str
    owner_name: str
    status: ModelStatus
    loaded: dict[str, str]
    refused: dict[str, str]
    created_ms: Ms


class AmountsAnswer(Answer):
    """USD per million tokens, as decimals. `cache_write`: of input that a provider puts into its cache."""

    price_id: int
    model: str
    currency: Literal["USD"]
    input: Usd
    cached_input: Usd
    cache_write: Usd
    output: Usd
    from_ms: Ms


class PriceAnswer(AmountsAnswer):
    """What tenants pay: in this class and by this contract; null: in all, without one."""

    class_: str | None = Field(alias="class")
    contract: str | None


class PriceSet(PriceAnswer):
    """`replaces`: the price that was to take effect later and that this one replaces."""

    replaces: int | None


class PriceTaken(PriceAnswer):
    """`before`: the price that its requests would have had; null: none. `changes_much`: by more than ten
    times, for tokens of some kind.
    """

    before: PriceAnswer | None
    changes_much: bool


class RatedLine(Answer):
    """What recorded requests of a model and class cost by the prices before and after. `unpriced`: how many
    have no price after.
    """

    model: str
    class_: str = Field(alias="class")
    requests: int
    unpriced: int
    before: Usd
    after: Usd


class PriceListTaken(Answer):
    """The prices that were set, or with `dry_run` would be, and what they do."""

    dry_run: bool
    currency: Literal["USD"]
    prices: list[PriceTaken]
    lines: list[RatedLine]


class CostPriceAnswer(AmountsAnswer):
    """What a provider charges: at this instance, or (null) at all of the model's that have no price of their
    own.
    """

    instance: str | None


class CostPriceSet(CostPriceAnswer):
    """`replaces`: the price that was to take effect later and that this one replaces."""

    replaces: int | None


class BilledTokens(Answer):
    """Billed tokens by kind of price."""

    uncached: int
    cached: int
    cache_write: int
    output: int


class BackfillLine(Answer):
    """What one tenant owes at one price."""

    tenant: str
    tenant_name: str | None
    price_id: int
    requests: int
    tokens: BilledTokens
    amount: Usd


class BackfillAnswer(Answer):
    """`still_unpriced`: requests from before the model's first price."""

    model: str
    dry_run: bool
    currency: Literal["USD"]
    data: list[BackfillLine]
    requests: int
    amount: Usd
    still_unpriced: int


class EngineLoad(Answer):
    """The load that the engine reports; `kv_usage` is a fraction."""

    running: int
    waiting: int
    kv_usage: float


class InstanceAnswer(Answer):
    """An instance that is registered now. `lease_until_ms` 0: it does not lapse. `engine`: its kind.
    `engine_model` null: it has the model's own. `max_concurrency` null: a calibration says it. `routes` null:
    all routes of its model. `own_user`: whether the engine of a private model has an OS user of its own; null
    for others.
    """

    instance: str
    model: str
    pool: str
    cell: str
    url: str
    engine: str
    engine_model: str | None
    max_concurrency: int | None
    status: str
    routes: list[str] | None
    own_user: bool | None
    abort: bool
    priority: bool
    epoch: str
    lease_until_ms: Ms
    added: Literal["by hand", "by its worker"]
    removed: bool
    load: EngineLoad


class Counters(Answer):
    """Tokens as an engine counts them."""

    prompt: int
    generation: int


class RegisteredInstance(Answer):
    """An instance that was added by hand."""

    instance: str
    model: str
    pool: str
    cell: str
    url: str
    engine: str
    engine_model: str | None
    max_concurrency: int | None
    routes: list[str] | None
    status: Literal["ready", "draining"]
    added: Literal["by hand"]
    abort: bool
    counts: bool
    priority: bool
    epoch: str
    baseline: Counters
    created_ms: Ms


class InstanceAdded(RegisteredInstance):
    """`warnings`: what the engine lacks."""

    warnings: list[str]


class RestartOrdered(Answer):
    """`epoch`: the start of the engine that is to end."""

    instance: str
    epoch: str
    drain_seconds: int


class InstanceRemoved(RegisteredInstance):
    """`engine_answers`: whether the engine still runs; null for a provider, which is not asked.
    `open_requests` is null if Redis does not answer.
    """

    engine_answers: bool | None
    open_requests: int | None
