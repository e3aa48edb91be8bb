"""The answers about usage, the audit, and single requests."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from billing.api.answer import Answer, Listing, Ms, Usd, Utc
from billing.api.catalogue_answers import Counters
from billing.findings import FindingKind
from billing.wire.dimensions import Dimension


class CheckpointDocument(Answer):
    """Where a tenant's chain of hashes stood at the end of a day (UTC). Positions count from 1; hashes are
    SHA-256, in hex. `tenant` is `audit_log` for the audit log, whose positions are its entries.
    """

    version: int
    tenant: str
    day: str
    position: int
    hash: str


class HeadDocument(Answer):
    """The same of a moment."""

    version: int
    tenant: str
    at_ms: Ms
    position: int
    hash: str


class SignedCheckpoint(Answer):
    """`signature`: base64 of Ed25519 over `taas usage checkpoint 1`, a line feed, and `checkpoint` as JSON
    with sorted names and without spaces. `key`: the id of the key that signed.
    """

    checkpoint: CheckpointDocument
    key: str
    signature: str


class SignedHead(Answer):
    """As a signed checkpoint."""

    checkpoint: HeadDocument
    key: str
    signature: str


class CheckpointListing(Listing[SignedCheckpoint]):
    """Newest first. `public_key`: that of the key which signs now, null where there is none. `head`: where
    the chain stands now, signed; null where there is no key, or no link. Whoever keeps it can tell later
    whether what was recorded until then was rewritten, also on the same day. `audit_log`: the newest
    checkpoint of the operator's audit log.
    """

    public_key: str | None
    head: SignedHead | None
    audit_log: SignedCheckpoint | None


class UsedTokens(Answer):
    """`cached` and `written` (put into a provider's cache; missing where there was nothing) are parts of
    `prompt`.
    """

    prompt: int
    cached: int
    written: int | None = None
    output: int


class AbsorbedTokens(Answer):
    """Tokens that nobody is billed for."""

    prompt: int
    output: int


class Unpriced(Answer):
    """Requests of models without a price, and their billed tokens."""

    requests: int
    tokens: int


class Requests(Answer):
    """How many requests."""

    requests: int


class UsageTotal(Answer):
    """What requests used, what tenants owe for it (`amount`), what providers charge for it (`cost`) and what
    models' makers get of it (`cost_makers`). The usage of `quarantined` requests is in doubt. `uncosted` went
    to a provider without a cost price; of `untold` the provider has not said what they used: neither is in
    `cost`, nor are engines of our own. `margin`: amount less both. A tenant's key does not see these last
    five.
    """

    requests: int
    tokens: UsedTokens
    absorbed: AbsorbedTokens
    unpriced: Unpriced
    quarantined: Requests
    uncosted: Requests | None = None
    untold: Requests | None = None
    amount: Usd
    cost: Usd | None = None
    cost_makers: Usd | None = None
    margin: Usd | None = None


class UsageLine(UsageTotal):
    """The usage of one group. It has the names by which it was grouped."""

    tenant: str | None = None
    tenant_name: str | None = None
    model: str | None = None
    project: str | None = None
    project_name: str | None = None
    key: str | None = None
    class_: str | None = Field(None, alias="class")
    contract: str | None = None
    hour: Utc | None = None
    day: str | None = Field(None, json_schema_extra={"format": "date"})


class BillItem(Answer):
    """Tokens of one kind: tokens × price = amount, the price being per million tokens. Without a price
    they have no amount.
    """

    model: str
    price_id: int | None
    kind: Literal["uncached_input", "cached_input", "cache_write", "output"]
    tokens: int
    price: Usd | None
    amount: Usd | None


class CostItem(BillItem):
    """The same of what an instance's provider charges, by a cost price."""

    instance: str


class UsageAnswer(Answer):
    """`lines`: a page of the groups. `total`, `items` (which add up to the amount) and `cost_items` (to the
    cost) are of all groups, whichever page is shown. `until` null: now.
    """

    tenant: str | None
    tenant_name: str | None
    by: list[Dimension]
    from_: Utc = Field(alias="from")
    until: Utc | None
    currency: Literal["USD"]
    lines: list[UsageLine]
    total: UsageTotal
    items: list[BillItem]
    cost_items: list[CostItem] | None = None
    next: str | None


class ProviderTokens(Answer):
    """`cached` and `written` are parts of `prompt`."""

    prompt: int
    cached: int
    written: int
    output: int


class ProviderUsageLine(Answer):
    """One day and model of a provider's. `untold`: requests of which it has not said what they used; their
    tokens are in neither figure.
    """

    day: str = Field(json_schema_extra={"format": "date"})
    model: str
    requests: int
    untold: int
    billed: ProviderTokens
    absorbed: ProviderTokens


class ProviderUsageAnswer(Answer):
    """All lines at once: there are few."""

    data: list[ProviderUsageLine]


class ComparedLine(Answer):
    """Of a day and model: tokens of one kind, here and there. `difference`: what the provider counted beyond
    what is billed and absorbed.
    """

    day: str = Field(json_schema_extra={"format": "date"})
    model: str
    kind: str
    billed: int
    absorbed: int
    theirs: int
    difference: int
    untold: int


class ComparedAnswer(Answer):
    """All lines at once: there are few."""

    data: list[ComparedLine]


class InstanceAudit(Answer):
    """Over all epochs of an instance: produced = billed + absorbed + open + residual."""

    instance: str
    produced: Counters
    billed: Counters
    absorbed: Counters
    open: Counters
    residual: Counters
    counters: bool


class AddedTokens(Answer):
    """What was added since the row before."""

    produced: Counters
    billed: Counters
    absorbed: Counters


class EngineBalance(Answer):
    """The balance of one engine in the minutes [`from_ms`, `until_ms`), or until the next row: produced =
    billed + absorbed + open + residual, all since its epoch began. `run`: of the epoch; it grows when the
    engine restarts. `counters`: `read`, `silent` (it did not answer; these are its last ones), or `ended`.
    `running` and `waiting`: its requests that are open, and that have ended and are not in SQL yet, the
    oldest of them for `lag_ms`.
    """

    instance: str
    epoch: str
    run: int
    counters: Literal["read", "silent", "ended"]
    from_ms: Ms
    until_ms: Ms
    produced: Counters
    billed: Counters
    absorbed: Counters
    open: Counters
    residual: Counters
    added: AddedTokens
    running: int
    waiting: int
    lag_ms: int


class TheirsAndOurs(Answer):
    """Tokens that a provider counted, and those that are billed and absorbed here."""

    theirs: int
    ours: int


class ProviderDifference(Answer):
    """Where a provider has other figures: of a day (UTC) and model, by kind of tokens. `instances`: of its
    account; none: all of the provider's kind. `untold`: requests of which it told no usage.
    """

    provider: str
    instances: list[str]
    day: str = Field(json_schema_extra={"format": "date"})
    model: str
    untold: int
    differences: dict[str, TheirsAndOurs]


class FindingAnswer(Answer):
    """One finding, without the fields that do not apply. `ids` are examples, `count` says how many there
    are. `since_ms`: since when a residual is there, to the minute.
    """

    kind: FindingKind
    message: str
    counter_lost: bool | None = None
    instance: str | None = None
    epoch: str | None = None
    count: int | None = None
    tokens: Counters | None = None
    ids: list[str] | None = None
    since_ms: Ms | None = None
    provider_usage: ProviderDifference | None = None


class AuditLogHead(Answer):
    """The number and the hash of the audit log's last entry: keep it elsewhere."""

    entry: int
    hash: str


class FindingRowAnswer(Answer):
    """A finding from when it was seen until it is gone (`gone_ms`; null: it is there). `said`: as it was seen
    last. `state`: `open`, `acknowledged` (it has an owner), `resolved` for a `reason`, or `closed`: it is
    gone, and nobody had resolved it.
    """

    finding: str
    kind: FindingKind
    said: FindingAnswer
    state: Literal["open", "acknowledged", "resolved", "closed"]
    owner: str | None
    reason: str | None
    opened_ms: Ms
    changed_ms: Ms
    gone_ms: Ms | None


class AuditAnswer(Answer):
    """`residual_tokens`: tokens that nothing explains. `checked`: whether all that is recorded was read back,
    or what was recorded since the last signed checkpoints.
    """

    checked: Literal["since_checkpoint", "all"]

    instances: list[InstanceAudit]
    residual_tokens: int
    findings: list[FindingAnswer]
    audit_log: AuditLogHead | None = None


class DeliveredTokens(Answer):
    """Tokens passed on to the caller."""

    output: int


class AbsorbedByReason(AbsorbedTokens):
    """Tokens that nobody is billed for, and why."""

    reasons: dict[str, AbsorbedTokens]


class ReceiptPrice(Answer):
    """USD per million tokens."""

    price_id: int
    input: Usd
    cached_input: Usd
    cache_write: Usd
    output: Usd


class ReceiptProvider(Answer):
    """Of a request that went to a provider: its name for the model, and its own usage object."""

    kind: str
    model: str
    usage: dict[str, Any] | None


class ReceiptAnswer(Answer):
    """All that is known of a request. `state`: `open`, `settled` (it has ended and is not in the ledger yet)
    or `recorded`. Unknown fields are missing.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    request_id: str
    state: Literal["open", "settled", "recorded"]
    kind: str | None = None
    tenant: str | None
    project: str | None
    key_id: str | None
    model: str
    pool: str
    cell: str
    instance: str | None = None
    epoch: str | None = None
    route: str
    stream: bool
    class_: str | None = Field(None, alias="class")
    contract: str | None = None
    weights: dict[str, int]
    samples: int
    started_ms: Ms
    first_token_ms: Ms | None = None
    ended_ms: Ms | None = None
    waited_ms: int | None = None
    ending: str | None = None
    usage_source: str | None = None
    anomaly: str | None = None
    produced: UsedTokens
    delivered: DeliveredTokens
    billed: UsedTokens | None = None
    absorbed: AbsorbedByReason | None = None
    units_mu: int | None = None
    decision: dict[str, Any] | None = None
    http_status: int | None = None
    gateway: str
    orphan: bool | None = None
    ignored: list[str] | None = None
    provider: ReceiptProvider | None = None
    line: str | None = None
    parts: list[str] | None = None
    pricing: str | None
    price: ReceiptPrice | None
    amount: Usd | None
    currency: Literal["USD"]
