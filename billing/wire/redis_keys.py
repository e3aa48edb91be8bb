"""Every Redis key of the product, spelled once. It owns names only: no client, no contents.

Keys of a cell share one hash tag, so that a script can access all of them in one hash slot. Tenants, key ids,
models and request ids come after the tag and cannot change the slot; a cell's name is inside the tag and must
not close it.
"""

from typing import Final

MODELS: Final = "taas:models"
CHANGES: Final = "taas:changes"
CHANGES_MAXLEN: Final = 10_000
INSTANCES: Final = "taas:instances"
# What workers say of their running engines, for evidence (a hash, by instance).
EVIDENCE: Final = "taas:evidence"
# Instances that a reclaim has: they get no new requests, and open ones end.
DRAINED: Final = "taas:drained"
# Engines that their workers are to start again (a hash, by instance): `{"epoch","drain_s"}`.
RESTARTS: Final = "taas:restarts"
# Instances that were replaced after their lease had run out (a hash, by instance: when in ms). They must not
# come back.
FENCED: Final = "taas:fenced"
# Held by the launcher that starts and stops instances.
LAUNCHER: Final = "taas:launcher"
SECRETS: Final = "taas:secrets"
CACHE_SALT_FIELD: Final = "cache_salt"
GATEWAYS: Final = "taas:gateways"
# The metrics pages that exist (a sorted set, by the end of their lease in ms).
SCRAPE_TARGETS: Final = "taas:scrape-targets"
CELLS: Final = "taas:cells"
# Held by the billing process that reaps, for the length of one pass.
REAPER_LOCK: Final = "taas:reaper"
# Held by the billing process that reads the engines added by hand.
ENGINE_WATCH_LOCK: Final = "taas:engine-watch"
# Held by the billing process that compares the cells' levels with the ledger after Redis has lost data.
RESTORER_LOCK: Final = "taas:restorer"
# The run of the server in which all cells together were last found intact.
INTACT: Final = "taas:intact"
# Which billing process allocates each busy cell (a hash), and which are alive (a sorted set, by the end of
# their lease in ms).
ALLOCATORS: Final = "taas:allocators"
ALLOCATORS_ALIVE: Final = "taas:allocators:alive"
# The marker of the catalogue's projection. If it differs from SQL, Redis has lost data.
PROJECTION: Final = "taas:projection"

# The channel on which gateways tell each other which requests they sent to which instance.
ROUTING_CHANNEL: Final = "taas:routing"

# The channel on which workers tell gateways what their engines' prefix caches have lost.
LOST_CHANNEL: Final = "taas:lost"

# Requests that were on engines when these died: `HASH INSTANCE/EPOCH`, the hash keyed (a sorted set, by the
# time in ms until which that counts).
QUARANTINE: Final = "taas:quarantine"

# The usage stream: one consumer group, one field an entry.
USAGE_GROUP: Final = "billing"
USAGE_FIELD: Final = "e"


def wanted(pool: str) -> str:
    """Present while requests wait for a pool that has no instance."""
    return f"taas:wanted:{pool}"


def sync_marker(gateway: str) -> str:
    """What a gateway writes behind its settles, to ask whether they are on Redis's disk."""
    return f"taas:sync:{gateway}"


def key_of_api_key(key_hash: str) -> str:
    """The projection of one API key, by the SHA-256 of the key in hex."""
    return f"taas:key:{key_hash}"


def tenant(tenant_id: str) -> str:
    """The projection of one tenant."""
    return f"taas:tenant:{tenant_id}"


def _cell(cell: str) -> str:
    if not cell or "{" in cell or "}" in cell:
        raise ValueError(f"a cell's name must not break out of its hash tag: {cell!r}")
    return f"{{c:{cell}}}"


def tenant_bucket(cell: str, tenant_id: str, model: str) -> str:
    """The levels of a tenant on a model."""
    return f"{_cell(cell)}:b:{tenant_id}:{model}"


def key_bucket(cell: str, key_id: str, model: str) -> str:
    """The levels of one API key on a model."""
    return f"{_cell(cell)}:k:{key_id}:{model}"


def reservation(cell: str, request_id: str) -> str:
    """An open reservation, or its tombstone."""
    return f"{_cell(cell)}:r:{request_id}"


def open_requests(cell: str) -> str:
    """Open request ids by the deadline of their lease in ms."""
    return f"{_cell(cell)}:open"


def usage_stream(cell: str) -> str:
    """Usage events on their way to SQL."""
    return f"{_cell(cell)}:usage"


def wake_channel(gateway: str) -> str:
    """The channel of a gateway: a request id wakes its waiting request, `!` and an id preempts a flex
    request.
    """
    return f"taas:wake:{gateway}"


def contract_bucket(cell: str, tenant_id: str) -> str:
    """A tenant's contract: its rate, its level, and its totals."""
    return f"{_cell(cell)}:q:{tenant_id}"


def room(cell: str) -> str:
    """How many slots on-demand and flex may use of each instance."""
    return f"{_cell(cell)}:room"


def flight(cell: str) -> str:
    """What is in flight at each instance, by class."""
    return f"{_cell(cell)}:flight"


def preemptible(cell: str, instance: str) -> str:
    """Open flex requests of an instance in the order of preemption; those below 0 can be resumed
    elsewhere.
    """
    return f"{_cell(cell)}:lent:{instance}"


def waiting_tenants(cell: str, class_letter: str) -> str:
    """Tenants that wait for on-demand (`o`) or flex (`f`), by their virtual counter."""
    return f"{_cell(cell)}:w:{class_letter}"


def waiting_requests(cell: str, class_letter: str, tenant_id: str) -> str:
    """The queue of one tenant: its waiting requests by arrival."""
    return f"{_cell(cell)}:wl:{class_letter}:{tenant_id}"


def intact(cell: str) -> str:
    """Present while the cell's levels are: the run of the server in which they were last compared with the
    ledger.
    """
    return f"{_cell(cell)}:intact"


def budget_keys(tenant_id: str) -> tuple[str, str]:
    """A tenant's budgets, and what its requests hold of them (two hashes with one hash tag)."""
    return f"{{b:{tenant_id}}}:budgets", f"{{b:{tenant_id}}}:held"


def idempotency_keys(tenant_id: str, key_hash: str) -> tuple[str, str, str]:
    """What an Idempotency-Key of a tenant is bound to, the stored answer, and how much of both the tenant has
    used today. `key_hash`: the SHA-256 of the Idempotency-Key in hex.
    """
    tag = f"{{i:{tenant_id}}}"
    return f"{tag}:k:{key_hash}", f"{tag}:a:{key_hash}", f"{tag}:used"
