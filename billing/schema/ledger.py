"""Tables of usage and its cost: events, prices, the ledger, engine counters. It owns columns, not how they
are filled.

Times are ms since the epoch, as in the usage event. Amounts are whole pico-dollars in NUMERIC(38): a BIGINT
would end at 9.2 million USD, which one large invoice can exceed. A token's price is bounded
(`money.PRICE_MAX…`) and fits a BIGINT. Tables of facts are append-only, and a transaction's postings sum to
zero: triggers of the migration enforce both.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    and_,
    or_,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from billing.moments import DAY_MS
from billing.schema.capacity import contract
from billing.schema.clock import NOW_MS
from billing.schema.metadata import metadata
from billing.wire.ending import Ending
from billing.wire.usage_event import NOT_FINAL_SOURCES, UsageSource

TOKEN_COLUMNS: Final = (
    "produced_prompt", "produced_cached", "produced_output", "delivered_output",
    "billed_prompt", "billed_cached", "billed_output", "absorbed_prompt", "absorbed_output",
)  # fmt: skip

# Of the prompt, what was put into a provider's cache.
WRITTEN_COLUMNS: Final = ("produced_written", "billed_written")

TOTAL_COLUMNS: Final = ("billed_prompt", "billed_output", "absorbed_prompt", "absorbed_output")

# `kind`: `request`, or `reconciliation` for tokens that the engine counted and no request's event could name.
# Partitioned by `day` (UTC, days since 1970; `ledger.event_days`), in which a request ended. A request is
# recorded once because the ledger has one first transaction for each.
usage_event = Table(
    "usage_event",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False, server_default=text("0")),
    Column("kind", Text, nullable=False, server_default="request"),
    Column("version", SmallInteger, nullable=False),
    Column("tenant", Text),
    Column("project", Text),
    Column("key_id", Text),
    Column("model", Text, nullable=False),
    Column("pool", Text, nullable=False),
    Column("cell", Text, nullable=False),
    Column("instance", Text, nullable=False),
    Column("epoch", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("class", Text, nullable=False),
    Column("contract", Text),
    Column("weights", JSONB, nullable=False),
    Column("samples", Integer, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("first_token_ms", BigInteger),
    Column("ended_ms", BigInteger, nullable=False),
    Column("waited_ms", BigInteger, nullable=False),
    Column("ending", Text, nullable=False),
    Column("usage_source", Text, nullable=False),
    Column("anomaly", Text),
    *(Column(name, BigInteger, nullable=False) for name in TOKEN_COLUMNS),
    *(Column(name, BigInteger, nullable=False, server_default=text("0")) for name in WRITTEN_COLUMNS),
    Column("absorbed_reasons", JSONB, nullable=False),
    # Why it was admitted as it was; null of events from before there was a choice.
    Column("decision", JSONB),
    # Names of what the request said in vain; null where there was nothing.
    Column("ignored", JSONB(none_as_null=True)),
    # Of a request that went to a provider: its kind, its name for the model, and its own usage object.
    Column("provider", JSONB(none_as_null=True)),
    # Of a batch, as `line_bill` has it; null of other requests.
    Column("line", Text),
    Column("units_mu", BigInteger, nullable=False),
    Column("http_status", Integer, nullable=False),
    Column("gateway", Text, nullable=False),
    Column("orphan", Boolean, nullable=False, server_default=text("false")),
    Column("digest", Text, nullable=False),
    Column("evidence", JSONB),
    Column("recorded_ms", BigInteger, nullable=False, server_default=NOW_MS),
    CheckConstraint("kind in ('request', 'reconciliation')", name="kind"),
    CheckConstraint(
        "kind = 'reconciliation' or (tenant is not null and project is not null and key_id is not null)",
        name="payer",
    ),
    CheckConstraint("produced_prompt = billed_prompt + absorbed_prompt", name="prompt_conserved"),
    CheckConstraint("produced_output = billed_output + absorbed_output", name="output_conserved"),
    CheckConstraint(
        "least(produced_cached, delivered_output, billed_prompt, billed_cached, billed_output, "
        "absorbed_prompt, absorbed_output) >= 0",
        name="not_negative",
    ),
    CheckConstraint("billed_cached + billed_written <= billed_prompt", name="cached_within_prompt"),
    CheckConstraint("least(produced_written, billed_written) >= 0", name="written_not_negative"),
    Index(None, "tenant", "ended_ms"),
    Index(None, "instance", "epoch", "ended_ms"),
    postgresql_partition_by="range (day)",
)

# A request whose event does not have the engine's final count. A dead gateway's last checkpoint may be of a
# moment at which nothing had been produced yet.
NOT_FINAL: Final = and_(
    usage_event.c.kind == "request",
    or_(
        usage_event.c.ending == Ending.GATEWAY_DIED.value,
        usage_event.c.usage_source.in_([source.value for source in NOT_FINAL_SOURCES]),
    ),
)
Index("ix_usage_event_not_final", usage_event.c.instance, usage_event.c.epoch, postgresql_where=NOT_FINAL)

Index("ix_usage_event_provider", usage_event.c.ended_ms, postgresql_where=usage_event.c.provider.is_not(None))

# Whether a provider has said what a request used; whether it went there and the provider has not.
_TOLD_SOURCE: Final = usage_event.c.usage_source == UsageSource.ENGINE.value
TOLD: Final = and_(usage_event.c.provider.is_not(None), _TOLD_SOURCE)
UNTOLD: Final = and_(usage_event.c.provider.is_not(None), ~_TOLD_SOURCE)

# The partition of what has no day.
NO_DAY: Final = 0


def in_days(from_ms: int | None, until_ms: int | None) -> ColumnElement[bool]:
    """That an event is in a partition that may have requests that ended in [from, until)."""
    if from_ms is None and until_ms is None:
        return true()
    day = usage_event.c.day
    bounds = [] if from_ms is None else [day >= from_ms // DAY_MS]
    if until_ms is not None:
        bounds.append(day <= until_ms // DAY_MS)
    return or_(day == NO_DAY, and_(*bounds))


# What each run of an engine was metered for so far: the sums of `usage_event`, kept in the same SQL
# transactions, so that the balance of an instance is known without reading its whole history.
usage_total = Table(
    "usage_total",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("epoch", Text, primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in TOTAL_COLUMNS),
)


_BY_NAMES: Final = ("project", "key_id", "model", "class", "contract", "instance", "pricing")
_COUNTS: Final = (
    "requests", "billed_prompt", "billed_cached", "billed_written", "billed_output", "absorbed_prompt",
    "absorbed_output", "units_mu",
)  # fmt: skip
# What `usage_hour` and `usage_day` add up.
USAGE_SUMS: Final = (*_COUNTS, "amount_picousd")


def _usage_sums(name: str, *keys: Column[Any], indexes: Sequence[Index]) -> Table:
    return Table(
        name,
        metadata,
        *keys,
        *(Column(count, BigInteger, nullable=False) for count in _COUNTS),
        Column("amount_picousd", Numeric(38, 0), nullable=False),
        *indexes,
    )


def _named(*names: str) -> list[Column[Any]]:
    return [Column(name, Text, primary_key=True) for name in names]


# The sums of usage and of what is owed for it, by the hour in which requests ended (hours since 1970). A
# trigger of `ledger_transaction` keeps them. `class` is `batch` of lines of batches; `contract` '' and
# `price_id` 0: it has none. An unpriced request that was priced later is among the priced ones.
usage_hour = _usage_sums(
    "usage_hour",
    *_named("tenant", *_BY_NAMES),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("price_id", BigInteger, primary_key=True, autoincrement=False),
    # The key of the table has the tenant first and the hour after all names: a tenant's month would be read
    # past all its other months.
    indexes=[Index(None, "hour"), Index(None, "tenant", "hour")],
)
# The same by day (days since 1970), of days that are whole in `summed_day`.
usage_day = _usage_sums(
    "usage_day",
    *_named("tenant"),
    Column("day", Integer, primary_key=True, autoincrement=False),
    *_named(*_BY_NAMES),
    Column("price_id", BigInteger, primary_key=True, autoincrement=False),
    indexes=[Index(None, "day")],
)
# Days whose hours are added up in `usage_day`, or are to be: a trigger of `usage_hour` deletes what is added
# to. `after_xid`: SQL transactions before this one may not have seen it.
summed_day = Table(
    "summed_day",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("whole", Boolean, nullable=False),
    Column("after_xid", BigInteger),
)


def _prices(name: str, *more: Column[str] | CheckConstraint) -> Table:
    return Table(
        name,
        metadata,
        Column("price_id", BigInteger, Identity(always=True), primary_key=True),
        Column("model", Text, nullable=False),
        Column("valid_from_ms", BigInteger, nullable=False),
        Column("input_picousd", BigInteger, nullable=False),
        Column("cached_input_picousd", BigInteger, nullable=False),
        Column("output_picousd", BigInteger, nullable=False),
        # Of input that a provider puts into its cache; null: as other input.
        Column("cache_write_picousd", BigInteger),
        Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
        *more,
        Index(None, "model", "valid_from_ms"),
        CheckConstraint(
            "least(input_picousd, cached_input_picousd, output_picousd) >= 0", name="not_negative"
        ),
        CheckConstraint("cache_write_picousd >= 0", name="cache_write_not_negative"),
    )


def _withdrawals(prices: Table) -> Table:
    return Table(
        f"{prices.name}_withdrawal",
        metadata,
        Column("price_id", BigInteger, ForeignKey(prices.c.price_id), primary_key=True, autoincrement=False),
        Column("withdrawn_ms", BigInteger, nullable=False, server_default=NOW_MS),
    )


# What tenants pay: for a model, and differently in one class or by one contract. What providers charge: for a
# model at any provider, or at one instance of it. Prices that were taken back before they held never priced
# anything.
price = _prices(
    "price",
    Column("contract_id", Text, ForeignKey(contract.c.contract_id)),
    Column("class", Text),
    CheckConstraint("class in ('reserved', 'on_demand', 'flex', 'batch')", name="class"),
)
price_withdrawal = _withdrawals(price)
cost_price = _prices("cost_price", Column("instance", Text))
cost_price_withdrawal = _withdrawals(cost_price)

# Of a request, or of something else: `subject` says of which invoice, credit, …, and each has one of a kind.
# `pricing`: `priced` · `unpriced` (no price was valid when the request started) · `quarantined` (its usage is
# in doubt) · `nothing_billed`. Of requests, only a priced one may have postings. `corrects`: it takes the
# place of an unpriced one, which itself stays as it is.
ledger_transaction = Table(
    "ledger_transaction",
    metadata,
    Column("transaction_id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False, server_default="request"),
    Column("request_id", Text),
    # The partition of its event.
    Column("day", Integer, nullable=False, server_default=text("0")),
    Column("subject", Text),
    Column("pricing", Text),
    Column("price_id", BigInteger),
    Column("corrects", BigInteger, ForeignKey("ledger_transaction.transaction_id"), unique=True),
    Column("recorded_ms", BigInteger, nullable=False, server_default=NOW_MS),
    # Whether it was put into a chain (`schema.chain`) as it was written; others wait for that.
    Column("chained", Boolean, nullable=False, server_default=text("false")),
    # Whether its writer has added it to the sums by hour and said that it is late; else triggers do.
    Column("counted", Boolean, nullable=False, server_default=text("false")),
    CheckConstraint("pricing in ('priced', 'unpriced', 'quarantined', 'nothing_billed')", name="pricing"),
    CheckConstraint(
        "(kind = 'request') = (request_id is not null) and (kind = 'request') = (pricing is not null) and "
        "(kind = 'request') = (subject is null)",
        name="kind",
    ),
    UniqueConstraint("kind", "subject"),
    CheckConstraint("(pricing = 'priced') = (price_id is not null)", name="priced_by"),
    CheckConstraint("corrects is null or pricing = 'priced'", name="corrected_by"),
    # What makes a request be billed once, also when its event is gone: one that corrects nothing.
    Index(
        "uq_ledger_transaction_request",
        "request_id",
        "corrects",
        unique=True,
        postgresql_where=text("request_id is not null"),
        postgresql_nulls_not_distinct=True,
    ),
    # The few that wait for a person: each half-minutely audit counts them.
    Index(
        "ix_ledger_transaction_no_amount",
        "pricing",
        "request_id",
        postgresql_where=text("pricing in ('unpriced', 'quarantined')"),
    ),
)

# Whose each account is (its holder): `ledger.accounts`. Debits are positive. That it is of a transaction, and
# a transaction of a price, is what writes it and the audit see to: a check for each row costs a tenth of
# recording.
ledger_posting = Table(
    "ledger_posting",
    metadata,
    Column("transaction_id", BigInteger, primary_key=True, autoincrement=False),
    Column("line", SmallInteger, primary_key=True, autoincrement=False),
    Column("account", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("amount_picousd", Numeric(38, 0), nullable=False),
    CheckConstraint("amount_picousd <> 0", name="not_zero"),
)

# What the stream held and could not be read as an event. The text is kept (bounded): it is the only evidence
# there is.
usage_rejected = Table(
    "usage_rejected",
    metadata,
    Column("rejected_id", BigInteger, Identity(always=True), primary_key=True),
    Column("cell", Text, nullable=False),
    Column("entry_id", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    Column("recorded_ms", BigInteger, nullable=False, server_default=NOW_MS),
    UniqueConstraint("cell", "entry_id", "digest"),
)

# A second event of a request that says something else than the first. The first counts.
usage_conflict = Table(
    "usage_conflict",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("raw", LargeBinary, nullable=False),
    Column("recorded_ms", BigInteger, nullable=False, server_default=NOW_MS),
)

# One row for each run of an engine process. `run` counts the restarts seen within one epoch of the catalogue;
# `started` is when the engine says that it was started, where it does. `state`: `open` · `closed` (ended:
# these are its last counters) · `no_counters`.
engine_counter = Table(
    "engine_counter",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("epoch", Text, primary_key=True),
    Column("run", Integer, primary_key=True, autoincrement=False),
    Column("started", Text),
    Column("baseline_prompt", BigInteger, nullable=False),
    Column("baseline_generation", BigInteger, nullable=False),
    Column("last_prompt", BigInteger, nullable=False),
    Column("last_generation", BigInteger, nullable=False),
    Column("polled_ms", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    # Whether a closed run's last counters are all that it produced: its worker read them after the last
    # request had ended.
    Column("exact", Boolean, nullable=False, server_default=text("false")),
    # What the engine said at the last poll of requests that ran or were not in `usage_event` yet: {"at_ms":
    # by Redis's clock, "counted": [prompt, generation], "counts": {id: [prompt, output]}}; null where it does
    # not count them.
    Column("requests", JSONB(none_as_null=True)),
    CheckConstraint("state in ('open', 'closed', 'no_counters')", name="state"),
)

# Requests of which their engine says something else than their event, or of which there is no event at all,
# as last seen.
request_difference = Table(
    "request_difference",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("epoch", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("counted_prompt", BigInteger, nullable=False),
    Column("counted_generation", BigInteger, nullable=False),
    Column("recorded_prompt", BigInteger, nullable=False),
    Column("recorded_generation", BigInteger, nullable=False),
    Column("found_ms", BigInteger, nullable=False, server_default=NOW_MS),
)

# Requests whose event does not have the engine's final word, and whose engine has since been found in
# balance, or has told it. `reconciliation` names the event that absorbed what several of them had produced
# beyond their events; null where there was nothing, or where each has its own.
reconciled_request = Table(
    "reconciled_request",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("reconciliation", Text),
    Column("recorded_ms", BigInteger, nullable=False, server_default=NOW_MS),
)
