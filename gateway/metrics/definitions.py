"""What the gateway tells Prometheus: the name, help text, labels and buckets of each of its metrics. Counts
nothing.

Kinds of tokens do not overlap, so that a sum counts each token once: `input`, `cached_input` and `output`,
here as in billing. No label is called `instance`: that is what Prometheus calls the address that it scrapes.
"""

from gateway.metrics.snapshot import Family

DURATION_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
FIRST_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
PER_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
ADDED_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
WAIT_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
REDIS_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)
TOKEN_KINDS = ("input", "cached_input", "output")


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(name, "counter", text, labels)


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(name, "gauge", text, labels)


def _histogram(name: str, text: str, bounds_s: tuple[float, ...], *labels: str) -> Family:
    return Family(name, "histogram", text, labels, bounds_s)


_REQUEST = ("route", "model", "class")

REQUESTS = _counter(
    "taas_requests", "Requests that were admitted and have ended, by how they ended.", *_REQUEST, "ending"
)
DURATION = _histogram(
    "taas_request_duration_seconds",
    "Time from the arrival of a request to its end.",
    DURATION_BUCKETS_S,
    *_REQUEST,
)
FIRST_TOKEN = _histogram(
    "taas_time_to_first_token_seconds",
    "Time from the arrival of a streamed request to its first token.",
    FIRST_TOKEN_BUCKETS_S,
    *_REQUEST,
)
PER_TOKEN = _histogram(
    "taas_time_per_output_token_seconds",
    "Mean time between the tokens of a stream, after its first one.",
    PER_TOKEN_BUCKETS_S,
    *_REQUEST,
)
ADDED = _histogram(
    "taas_gateway_added_seconds",
    "Time from the arrival of a request until it is sent to an engine.",
    ADDED_BUCKETS_S,
    "route",
)
TOKENS = _counter(
    "taas_tokens",
    "Tokens that settled requests are billed for; each token is of one kind.",
    "tenant",
    "model",
    "kind",
)
DELIVERED = _counter(
    "taas_delivered_tokens",
    "Output tokens of settled requests that their callers received.",
    "tenant",
    "model",
)
REFUSALS = _counter(
    "taas_refusals", "Requests that were refused, by the limit or check that refused them.", "which"
)
IGNORED = _counter("taas_ignored_fields", "Fields of requests that were taken and had no effect.", "name")
UPSTREAM_ERRORS = _counter(
    "taas_upstream_errors", "Requests that an engine failed, by the kind of failure.", "engine", "kind"
)
ANOMALIES = _counter(
    "taas_usage_anomalies", "Requests whose usage figure from the engine was missing or impossible.", "kind"
)
DEGRADED = _gauge(
    "taas_degraded", "Processes of this gateway in which this component does not do its work.", "component"
)
RESERVATIONS = _gauge("taas_reservations_open", "Requests that are admitted and not settled yet.")
JOURNAL = _gauge("taas_journal_entries", "Settles that wait on this gateway's disk until Redis takes them.")
REDIS = _histogram(
    "taas_redis_roundtrip_seconds", "Time that one pipeline takes to Redis and back.", REDIS_BUCKETS_S
)
WAITING = _gauge("taas_requests_waiting", "Requests that wait for room at an engine now.", "asked")
WAITING_BYTES = _gauge(
    "taas_waiting_bytes", "Bytes of the bodies of requests that wait for room at an engine now."
)
WAIT = _histogram(
    "taas_wait_seconds",
    "Time that requests waited for room at an engine, however the wait ended.",
    WAIT_BUCKETS_S,
    "asked",
)
WAITS = _counter(
    "taas_waits", "Waits for room at an engine that are over, by how they ended.", "asked", "ending"
)
