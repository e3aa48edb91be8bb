"""The answers of the routes in OpenAI's form, as its SDK has their types. Times are Unix seconds."""

from typing import Generic, Literal, TypeVar

from pydantic import ConfigDict

from billing.api.answer import Answer

T = TypeVar("T")


class UsageResult(Answer):
    """One group of a bucket; what it is not grouped by is null. `input_tokens` include cached ones."""

    object: Literal["organization.usage.completions.result"]
    input_tokens: int
    input_cached_tokens: int
    input_cache_write_tokens: int
    input_uncached_tokens: int
    output_tokens: int
    num_model_requests: int
    project_id: str | None
    user_id: str | None
    api_key_id: str | None
    model: str | None
    batch: bool | None
    service_tier: str | None


class PooledResult(Answer):
    """One group of a bucket; what it is not grouped by is null."""

    object: Literal["organization.usage.embeddings.result"]
    input_tokens: int
    num_model_requests: int
    project_id: str | None
    user_id: str | None
    api_key_id: str | None
    model: str | None


class CostAmount(Answer):
    """`value` is a number, as the SDK has it; `exact` is the amount, a decimal."""

    value: float
    currency: Literal["usd"]
    exact: str


class CostResult(Answer):
    """One group of a day. `quantity`: tokens of this line item, where it is a model and a kind of tokens;
    others are `reserved capacity` and `capacity that was short`, each with its contract, `volume discount`
    and `commitment`.
    """

    object: Literal["organization.costs.result"]
    amount: CostAmount
    line_item: str | None
    project_id: str | None
    user_id: str | None
    api_key_id: str | None
    quantity: int | None
    quantity_unit: Literal["tokens"] | None


class _Bucket(Answer):
    object: Literal["bucket"]
    start_time: int
    end_time: int


class UsageBucket(_Bucket):
    """[start, end) in Unix seconds. Without usage it has no results."""

    results: list[UsageResult]


class PooledBucket(_Bucket):
    """[start, end) in Unix seconds."""

    results: list[PooledResult]


class CostBucket(_Bucket):
    """[start, end) in Unix seconds, a day."""

    results: list[CostResult]


class _Paged(Answer):
    object: Literal["page"]
    has_more: bool
    next_page: str | None


class UsagePage(_Paged):
    """Buckets in the order of time. `next_page`: give it as `page`."""

    data: list[UsageBucket]


class PooledPage(_Paged):
    """Buckets in the order of time."""

    data: list[PooledBucket]


class CostPage(_Paged):
    """Days in the order of time."""

    data: list[CostBucket]


class ObjectList(Answer, Generic[T]):
    """A page of a list."""

    object: Literal["list"]
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


class OrganizationProject(Answer):
    """A project. Times are Unix seconds."""

    object: Literal["organization.project"]
    id: str
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]


class ServiceAccount(Answer):
    """Keys belong to no person: each is an account of its own."""

    object: Literal["organization.project.service_account"]
    id: str
    name: str
    role: Literal["member"]
    created_at: int


class KeyOwner(Answer):
    """Who has a key of a project."""

    type: Literal["service_account"]
    service_account: ServiceAccount


class ProjectKey(Answer):
    """An API key that was not revoked, without its secret."""

    object: Literal["organization.project.api_key"]
    id: str
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    owner: KeyOwner
    owner_project_access: Literal["active", "inactive"]


class ProjectRateLimit(Answer):
    """The limits of the tenant on a model (`*`: on each), which all its projects share; null is no limit."""

    object: Literal["project.rate_limit"]
    id: str
    model: str
    max_requests_per_1_minute: int | None
    max_tokens_per_1_minute: int | None
    max_requests_per_1_day: int | None
    max_tokens_per_1_day: int | None


class AdminKeyOwner(Answer):
    """Whose an admin key is: a tenant's, or the platform's."""

    type: Literal["service_account"]
    object: Literal["organization.user"]
    id: str
    name: str
    role: str
    created_at: int


class OrganizationAdminKey(Answer):
    """An admin key that was not revoked, without its secret."""

    object: Literal["organization.admin_api_key"]
    id: str
    name: str | None
    redacted_value: str
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    owner: AdminKeyOwner


class ActorKey(Answer):
    """The admin key that made a change; or `root`, or a role of the database."""

    id: str
    type: Literal["service_account"]


class Actor(Answer):
    """Who made a change."""

    type: Literal["api_key"]
    api_key: ActorKey


class AuditLogEntry(Answer):
    """One change. What was changed, and to what, is in the member named like `type`, as `id` and
    `changes_requested`. `GET /admin/v1/audit-log` has all of it, and the hashes.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str
    type: str
    effective_at: int
    actor: Actor
