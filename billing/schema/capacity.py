"""Tables of capacity: what a pool can do, what is sold, the use of its machines, and the evidence. It owns
columns, not how they are filled.

Work is in milliunits (mu), rates in mu per second, times in ms since the epoch. A pool without a row has the
defaults and no machines to sell.
"""

from typing import Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Numeric,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from billing.schema.catalogue import model, tenant
from billing.schema.clock import NOW_MS
from billing.schema.metadata import metadata

HEADROOM_PERMILLE: Final = 100

# `instances`: machines that the pool owns, whatever they are used for now. `set_aside_mu_s`: what the
# operator keeps for itself.
pool = Table(
    "pool",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("instances", Integer, nullable=False, server_default="0"),
    Column("headroom_permille", Integer, nullable=False, server_default=text(str(HEADROOM_PERMILLE))),
    Column("set_aside_mu_s", BigInteger, nullable=False, server_default="0"),
    Column("updated_ms", BigInteger, nullable=False, server_default=NOW_MS, onupdate=NOW_MS),
    CheckConstraint("instances >= 0 and set_aside_mu_s >= 0", name="not_negative"),
    CheckConstraint("headroom_permille between 0 and 999", name="headroom"),
)

# What of a pool a launcher runs: so many instances of this model, each on so many nodes, with GPUs and other
# resources for each node. `path`: the folder of the model's files there.
launch = Table(
    "launch",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("model", Text, ForeignKey(model.c.name), nullable=False),
    Column("instances", Integer, nullable=False),
    Column("gpus", Integer, nullable=False, server_default="0"),
    Column("nodes", Integer, nullable=False, server_default="1"),
    Column("resources", JSONB, nullable=False, server_default=text("'{}'")),
    Column("path", Text),
    Column("engine_args", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    CheckConstraint("instances >= 0 and gpus >= 0 and nodes > 0", name="counts"),
)

# Pools whose number of running instances follows contracts and load. `least`, `most`: the operator's bounds.
# `desired`, `why`, `decided_ms`: the decision in force, null before the first.
autoscaling = Table(
    "autoscaling",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("least", Integer, nullable=False),
    Column("most", Integer, nullable=False),
    Column("desired", Integer),
    Column("why", Text),
    Column("decided_ms", BigInteger),
    CheckConstraint("0 <= least and least <= most", name="bounds"),
)

# What a pool was until a moment; since the last of them it is what its row says. Append-only.
pool_past = Table(
    "pool_past",
    metadata,
    Column("entry", BigInteger, Identity(always=True), primary_key=True),
    Column("pool", Text, nullable=False, index=True),
    Column("until_ms", BigInteger, nullable=False),
    Column("instances", Integer, nullable=False),
    Column("headroom_permille", Integer, nullable=False),
    Column("set_aside_mu_s", BigInteger, nullable=False),
)

# What each machine of a pool costs an hour, all in, draws (`watts`, and the overhead of its building as a
# factor) and has, and the use of those that no reclaim has, from a moment on; of two from the same moment the
# later entry holds. Null: not known; of the use: as the visibility of the pool's models says. Append-only.
machine_terms = Table(
    "machine_terms",
    metadata,
    Column("entry", BigInteger, Identity(always=True), primary_key=True),
    Column("pool", Text, nullable=False, index=True),
    Column("from_ms", BigInteger, nullable=False),
    Column("cost_picousd_hour", Numeric(38, 0)),
    Column("watts", BigInteger),
    Column("overhead_permille", Integer, nullable=False, server_default="1000"),
    Column("gpus", Integer),
    Column("use", Text),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    CheckConstraint("least(cost_picousd_hour, watts, gpus) >= 0", name="not_negative"),
    CheckConstraint("overhead_permille >= 1000", name="overhead"),
    CheckConstraint("use in ('external', 'internal', 'research', 'recsys', 'idle')", name="use"),
)

# One measurement of one instance; the newest of a pool holds. `sequences`: in flight at most while the
# latency targets hold.
calibration = Table(
    "calibration",
    metadata,
    Column("calibration_id", Text, primary_key=True),
    Column("pool", Text, nullable=False, index=True),
    Column("model", Text, ForeignKey(model.c.name), nullable=False),
    Column("weights_version", Integer, nullable=False),
    Column("capacity_mu_s", BigInteger, nullable=False),
    Column("sequences", Integer, nullable=False),
    Column("tpot_target_ms", Integer, nullable=False),
    Column("ttft_target_ms", Integer, nullable=False),
    Column("hardware", Text, nullable=False),
    Column("engine_version", Text, nullable=False),
    Column("error_permille", Integer, nullable=False),
    Column("report", JSONB, nullable=False),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    CheckConstraint("capacity_mu_s > 0 and sequences > 0", name="positive"),
)

# What was signed. The rate over time is in `contract_step`; the notices and the state follow, each change in
# `contract_history`. `later`: what amendments have made of overflow, cap and notice days, by `from_ms`.
contract = Table(
    "contract",
    metadata,
    Column("contract_id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey(tenant.c.tenant_id), nullable=False, index=True),
    Column("pool", Text, nullable=False, index=True),
    Column("state", Text, nullable=False),
    Column("starts_ms", BigInteger, nullable=False),
    Column("ends_ms", BigInteger, nullable=False),
    Column("minimum_until_ms", BigInteger, nullable=False),
    Column("tenant_notice_days", Integer, nullable=False),
    Column("operator_notice_days", Integer, nullable=False),
    Column("notice_by", Text),
    Column("notice_given_ms", BigInteger),
    Column("effective_end_ms", BigInteger, nullable=False),
    Column("overflow", Text, nullable=False),
    Column("spill_mu_s", BigInteger),
    Column("burst_ms", Integer, nullable=False, server_default="1000"),
    Column("headroom_permille", Integer, nullable=False),
    Column("price_reference", Text),
    Column("later", JSONB, nullable=False, server_default=text("'[]'")),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    CheckConstraint("state in ('draft', 'signed', 'active', 'notice_given', 'ended')", name="state"),
    CheckConstraint("overflow in ('reject', 'spill', 'queue')", name="overflow"),
    CheckConstraint("notice_by in ('tenant', 'operator')", name="notice_by"),
    CheckConstraint("starts_ms < ends_ms and effective_end_ms <= ends_ms", name="term"),
    CheckConstraint("least(tenant_notice_days, operator_notice_days) >= 0", name="notice"),
    CheckConstraint("headroom_permille between 0 and 999", name="headroom"),
    CheckConstraint("spill_mu_s >= 0", name="spill"),
    CheckConstraint("burst_ms >= 1000", name="burst"),
    Index(None, "starts_ms", "contract_id"),
)

# The ramp: from `from_ms` on this rate, until the next step or the effective end. The first step is at
# `starts_ms`.
contract_step = Table(
    "contract_step",
    metadata,
    Column("contract_id", Text, ForeignKey(contract.c.contract_id), primary_key=True),
    Column("from_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("mu_s", BigInteger, nullable=False),
    CheckConstraint("mu_s >= 0", name="not_negative"),
)

# Append-only. `after` is the whole contract as it then stood; `detail`: what a change was about that the
# contract does not say.
contract_history = Table(
    "contract_history",
    metadata,
    Column("entry", BigInteger, Identity(always=True), primary_key=True),
    Column("contract_id", Text, ForeignKey(contract.c.contract_id), nullable=False, index=True),
    Column("at_ms", BigInteger, nullable=False, server_default=NOW_MS),
    Column("change", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("after", JSONB, nullable=False),
    Column("detail", JSONB),
)

# Machines of a pool lent to another use, from `by_ms` until they are released. `chosen`: the instances that
# left.
reclaim = Table(
    "reclaim",
    metadata,
    Column("reclaim_id", Text, primary_key=True),
    Column("pool", Text, nullable=False, index=True),
    Column("instances", Integer, nullable=False),
    Column("use", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("breaks", Boolean, nullable=False),
    Column("chosen", JSONB, nullable=False),
    Column("by_ms", BigInteger, nullable=False),
    Column("released_ms", BigInteger),
    Column("created_ms", BigInteger, nullable=False, server_default=NOW_MS),
    CheckConstraint("instances > 0", name="instances"),
    CheckConstraint("use in ('external', 'internal', 'research', 'recsys', 'idle')", name="use"),
    CheckConstraint("state in ('planned', 'draining', 'done', 'released', 'cancelled')", name="state"),
)

reclaim_history = Table(
    "reclaim_history",
    metadata,
    Column("entry", BigInteger, Identity(always=True), primary_key=True),
    Column("reclaim_id", Text, ForeignKey(reclaim.c.reclaim_id), nullable=False, index=True),
    Column("at_ms", BigInteger, nullable=False, server_default=NOW_MS),
    Column("change", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
)

# Evidence, one row a contract and minute; written again until its minute is over. mu, except `refused` and
# `limited_…` (requests). `refused`: over the contract. `limited_…`: by that limit of the tenant or of its
# key, while the contract had room. Short is a contract of what a reclaim cut, and of what was missing: the
# ready machines could not have done it.
contract_minute = Table(
    "contract_minute",
    metadata,
    Column("contract_id", Text, ForeignKey(contract.c.contract_id), primary_key=True),
    Column("minute_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("assigned_mu", BigInteger, nullable=False),
    Column("used_mu", BigInteger, nullable=False),
    Column("lent_mu", BigInteger, nullable=False),
    Column("borrowed_mu", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    Column("limited_requests", BigInteger, nullable=False, server_default="0"),
    Column("limited_concurrency", BigInteger, nullable=False, server_default="0"),
    Column("limited_cancels", BigInteger, nullable=False, server_default="0"),
    Column("cut_mu", BigInteger, nullable=False),
    Column("missing_mu", BigInteger, nullable=False),
    Column("shortfall_mu", BigInteger, Computed("cut_mu + missing_mu", persisted=True), nullable=False),
)

# The sums of the same by hour (hours since 1970), for reports of months. A trigger keeps them.
contract_hour = Table(
    "contract_hour",
    metadata,
    Column("contract_id", Text, ForeignKey(contract.c.contract_id), primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("assigned_mu", BigInteger, nullable=False),
    Column("used_mu", BigInteger, nullable=False),
    Column("lent_mu", BigInteger, nullable=False),
    Column("shortfall_mu", BigInteger, nullable=False),
)

# What a contract was short of in one second because its machines were taken against it: the basis of a
# credit.
contract_shortfall = Table(
    "contract_shortfall",
    metadata,
    Column("contract_id", Text, ForeignKey(contract.c.contract_id), primary_key=True),
    Column("second_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("assigned_mu", BigInteger, nullable=False),
    Column("cut_mu", BigInteger, nullable=False),
    Column("reclaim_id", Text, ForeignKey(reclaim.c.reclaim_id), nullable=False),
    CheckConstraint("cut_mu > 0 and cut_mu <= assigned_mu", name="cut"),
)
