"""What a gateway process tells Prometheus. Owns metric names, labels, buckets and bounds; measures nothing
itself.

The kinds of tokens do not overlap, so that a sum counts each token once: `input`, `cached_input` and
`output`, here as in billing. No label is called `instance`: that is what Prometheus calls the address that
it scrapes.
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

OTHER: Final = "other"
# How many sets of labels one metric may have. Beyond it, the label that can grow is `other`.
SERIES_MAX: Final = 1_000
# Models × routes × classes × endings, and tenants × models.
ROWS_MAX: Final = 4_000

_REQUEST: Final = ("route", "model", "class")
_DURATION_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_FIRST_TOKEN_S: Final = (
    0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
_PER_TOKEN_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
_ADDED_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_WAIT_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
_REDIS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)

T = TypeVar("T")


class _Kept(dict[tuple[str, ...], T]):
    """Series by their labels, each made once: `labels()` costs more than to count.

    It is the first label that can grow. Once there are `rows_max` sets of labels, a new one counts as
    `other` there; that set is kept too, because most requests of very many tenants need it.
    """

    def __init__(self, make: Callable[..., T], rows_max: int = SERIES_MAX) -> None:
        super().__init__()
        self._make = make
        self._rows_max = rows_max

    def __missing__(self, labels: tuple[str, ...]) -> T:
        if len(self) >= self._rows_max and labels[0] != OTHER:
            return self[OTHER, *labels[1:]]
        made = self[labels] = self._make(*labels)
        return made


class _RequestSeries(NamedTuple):
    """What one finished request adds to."""

    requests: Counter
    duration: Histogram
    first_token: Histogram
    per_token: Histogram
    added: Histogram


class _TokenSeries(NamedTuple):
    """What the tokens of one settled request add to."""

    input_tokens: Counter
    cached_input_tokens: Counter
    output_tokens: Counter
    delivered: Counter


class Metrics:
    """Built once a process. The methods are called in the loop's thread; the registry is read from any."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: frozenset[str] | None = None
        self._make_of_requests()
        self._make_of_waits()
        self._make_of_process()
        self._request_series = _Kept(self._series_of_requests, ROWS_MAX)
        self._token_series = _Kept(self._series_of_tokens, ROWS_MAX)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets_s: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets_s, registry=self.registry)

    def _make_of_requests(self) -> None:
        self._requests = self._counter(
            "taas_requests", "Requests that were admitted and have ended, by how they ended.",
            *_REQUEST, "ending",
        )  # fmt: skip
        self._duration = self._histogram(
            "taas_request_duration_seconds", "Time from the arrival of a request to its end.",
            _DURATION_S, *_REQUEST,
        )  # fmt: skip
        self._first_token = self._histogram(
            "taas_time_to_first_token_seconds",
            "Time to first token (TTFT) of streamed requests.", _FIRST_TOKEN_S, *_REQUEST,
        )  # fmt: skip
        self._per_token = self._histogram(
            "taas_time_per_output_token_seconds",
            "Mean inter-token latency (ITL) of a stream, after its first token.", _PER_TOKEN_S, *_REQUEST,
        )  # fmt: skip
        self._added = self._histogram(
            "taas_gateway_added_seconds",
            "Time from the arrival of a request until it is sent to an engine.", _ADDED_S, "route",
        )  # fmt: skip
        self._tokens = self._counter(
            "taas_tokens", "Tokens that settled requests are billed for; each token is of one kind.",
            "tenant", "model", "kind",
        )  # fmt: skip
        self._delivered = self._counter(
            "taas_delivered_tokens", "Output tokens of settled requests that their callers received.",
            "tenant", "model",
        )  # fmt: skip
        self._reservations = self._gauge(
            "taas_reservations_open", "Requests that are admitted and not settled yet."
        )

    def _make_of_waits(self) -> None:
        self._waiting = _Kept(self._gauge(
            "taas_requests_waiting", "Requests in the queue for a slot at an engine.", "asked",
        ).labels)  # fmt: skip
        self._waiting_bytes = self._gauge(
            "taas_waiting_bytes", "Bytes of the bodies of requests in the queue for a slot."
        )
        self._wait = _Kept(self._histogram(
            "taas_wait_seconds", "Time that requests waited in the queue for a slot, however that ended.",
            _WAIT_S, "asked",
        ).labels)  # fmt: skip
        self._waits = _Kept(self._counter(
            "taas_waits", "Waits in the queue that are over, by how they ended.", "asked", "ending",
        ).labels)  # fmt: skip

    def _make_of_process(self) -> None:
        self._refusals = _Kept(self._counter(
            "taas_refusals", "Requests that were refused, by the limit or check that refused them.", "which",
        ).labels)  # fmt: skip
        self._ignored = _Kept(self._counter(
            "taas_ignored_fields", "Fields of requests that were ignored.", "name",
        ).labels)  # fmt: skip
        self._upstream_errors = _Kept(self._counter(
            "taas_upstream_errors", "Requests that an engine failed, by the kind of failure.",
            "engine", "kind",
        ).labels)  # fmt: skip
        self._routed = _Kept(self._counter(
            "taas_routed_requests",
            "Requests of models with several instances, by why they were sent where they were.", "why",
        ).labels)  # fmt: skip
        self._routed_cached = _Kept(self._counter(
            "taas_routed_cached_tokens",
            "Cached prompt tokens of these requests: those that were expected, and those that there were.",
            "which",
        ).labels)  # fmt: skip
        self._breakers = _Kept(self._gauge(
            "taas_instance_breaker",
            "1 while the circuit breaker of this instance is open in this process: it gets no requests.",
            "engine",
        ).labels)  # fmt: skip
        self._anomalies = _Kept(self._counter(
            "taas_usage_anomalies", "Requests whose usage figure from the engine was missing or impossible.",
            "kind",
        ).labels)  # fmt: skip
        self._degraded = _Kept(self._gauge(
            "taas_degraded", "1 while this component of the gateway process does not do its work.",
            "component",
        ).labels)  # fmt: skip
        self._journal = self._gauge(
            "taas_journal_entries", "Settles that wait in this process's journal until Redis takes them."
        )
        self._redis = self._histogram(
            "taas_redis_roundtrip_seconds", "Time that one pipeline takes to Redis and back.", _REDIS_S
        )
        self._processes = self._gauge("taas_gateway_processes", "Processes of the gateway that serve now.")
        self._deaths = self._counter(
            "taas_gateway_process_deaths",
            "Processes of the gateway that ended unexpectedly in this one's place.",
        )

    def _series_of_requests(self, model: str, route: str, class_: str, ending: str) -> _RequestSeries:
        labels = (route, model, class_)
        return _RequestSeries(
            requests=self._requests.labels(*labels, ending),
            duration=self._duration.labels(*labels),
            first_token=self._first_token.labels(*labels),
            per_token=self._per_token.labels(*labels),
            added=self._added.labels(route),
        )

    def _series_of_tokens(self, tenant: str, model: str) -> _TokenSeries:
        return _TokenSeries(
            input_tokens=self._tokens.labels(tenant, model, "input"),
            cached_input_tokens=self._tokens.labels(tenant, model, "cached_input"),
            output_tokens=self._tokens.labels(tenant, model, "output"),
            delivered=self._delivered.labels(tenant, model),
        )

    def set_models(self, models: Iterable[str]) -> None:
        """The catalogue's model names: from now on any other name counts as `other`. Series that exist go
        on.
        """
        self._models = frozenset(models)

    def _known(self, model: str) -> str:
        return model if self._models is None or model in self._models else OTHER

    def request_finished(
        self,
        route: str,
        model: str,
        cls: str,
        ending: str,
        duration_s: float,
        ttft_s: float | None,
        tpot_s: float | None,
        added_s: float,
    ) -> None:
        """One request has ended: called once for each, whatever its ending. Times are in seconds, None if
        there was no token to time.
        """
        series = self._request_series[self._known(model), route, cls, ending]
        series.requests.inc()
        series.duration.observe(duration_s)
        series.added.observe(added_s)
        if ttft_s is not None:
            series.first_token.observe(ttft_s)
        if tpot_s is not None:
            series.per_token.observe(tpot_s)

    def tokens(self, tenant: str, model: str, prompt: int, cached: int, output: int, delivered: int) -> None:
        """The tokens of one settled request: billed prompt (`cached` is a part of it), billed output,
        delivered output.
        """
        series = self._token_series[tenant, self._known(model)]
        series.input_tokens.inc(prompt - cached)
        if cached:
            series.cached_input_tokens.inc(cached)
        if output:
            series.output_tokens.inc(output)
        if delivered:
            series.delivered.inc(delivered)

    def refused(self, which: str) -> None:
        """A request was refused; `which` limit or check, out of a fixed list."""
        self._refusals[which,].inc()

    def ignored_field(self, name: str) -> None:
        """A field of a request was ignored; `name` is from a fixed list."""
        self._ignored[name,].inc()

    def upstream_error(self, instance: str, kind: str) -> None:
        """An instance failed a request; `kind` is an UpstreamFailure or a rule that a meter found broken."""
        self._upstream_errors[instance, kind].inc()

    def routed(self, why: str, cached_expected: int, cached_found: int) -> None:
        """A request for whose instance there was a choice has ended; `why` is a `routing.rank.Why`. Tokens of
        its prompt that should have been cached, and that were.
        """
        self._routed[why,].inc()
        self._routed_cached["expected",].inc(cached_expected)
        self._routed_cached["found",].inc(cached_found)

    def set_breaker(self, instance: str, is_open: bool) -> None:
        """The breaker of an instance opens or closes."""
        self._breakers[instance,].set(is_open)

    def anomaly(self, kind: str) -> None:
        """A usage figure was missing or wrong."""
        self._anomalies[kind,].inc()

    def set_degraded(self, component: str, on: bool) -> None:
        """A component such as `redis` works, or does not work, in this process."""
        self._degraded[component,].set(on)

    def count_open(self, count: Callable[[], int]) -> None:
        """Ask this, whenever the page is read, how many reservations are open."""
        self._reservations.set_function(count)

    def set_journal_entries(self, n: int) -> None:
        """Settles that wait in this process's journal."""
        self._journal.set(n)

    def wait_begun(self, asked: str, body_bytes: int) -> None:
        """A request has joined the queue; `asked` is its ServiceTier."""
        self._waiting[asked,].inc()
        self._waiting_bytes.inc(body_bytes)

    def wait_ended(self, asked: str, ending: str, seconds: float, body_bytes: int) -> None:
        """A request has left the queue; `ending` is a WaitEnd. Called once for each `wait_begun`."""
        self._waiting[asked,].dec()
        self._waiting_bytes.dec(body_bytes)
        self._waits[asked, ending].inc()
        self._wait[asked,].observe(seconds)

    def wait_refused(self, asked: str, ending: str) -> None:
        """A request could not join the queue, because of a bound of this process."""
        self._waits[asked, ending].inc()

    def redis_roundtrip(self, seconds: float) -> None:
        """The time of one pipeline to Redis and back."""
        self._redis.observe(seconds)

    def serves(self, deaths: int) -> None:
        """This process takes requests. `deaths`: how many processes in its place have died."""
        self._processes.set(1)
        self._deaths.inc(deaths)
