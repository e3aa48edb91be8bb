"""Every metric of the gateway, counted in plain numbers of this process. Knows neither who scrapes nor how
processes are put together.

A request touches some fifteen series. Through prometheus_client's objects that is about 11 µs in its
multi-process form (a memory-mapped write and a lock each), here about 3: one look-up finds all series of a
request, each is a list that is added to. They become metric families only when somebody asks (`collect`), or
a snapshot that other processes' figures are added to (`snapshot`).

Labels come from catalogues. A value that is not in them becomes `other`, and a family that has reached its
limit counts the rest there.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gateway.metrics import definitions
from gateway.metrics.definitions import (
    ADDED_BUCKETS_S,
    DURATION_BUCKETS_S,
    FIRST_TOKEN_BUCKETS_S,
    PER_TOKEN_BUCKETS_S,
    REDIS_BUCKETS_S,
    TOKEN_KINDS,
    WAIT_BUCKETS_S,
)
from gateway.metrics.snapshot import Family, Snapshot, families

OTHER = "other"
# Tenants × models that have tokens of their own; a series for each kind.
TOKEN_ROWS_MAX = 4_000
# Routes × models × classes × endings; a counter each. Histograms (about 15 series each) have no ending, so
# they stay far below.
REQUEST_ROWS_MAX = 4_000
LABEL_ROWS_MAX = 1_000

Labels = tuple[str, ...]


class _Histogram:
    """Rows of [count per bucket …, count above the last, sum]."""

    __slots__ = ("bounds", "family", "rows")

    def __init__(self, family: Family) -> None:
        self.family = family
        self.bounds = family.bounds
        self.rows: dict[Labels, list[float]] = {}

    def row(self, labels: Labels) -> list[float]:
        row = self.rows.get(labels)
        if row is None:
            row = self.rows[labels] = [0.0] * (len(self.bounds) + 2)
        return row


class _Numbers:
    """Rows of one number each: a counter or a gauge. Past `rows_max` new label values count as `other`."""

    __slots__ = ("family", "rows", "rows_max")

    def __init__(self, family: Family, rows_max: int = LABEL_ROWS_MAX) -> None:
        self.family = family
        self.rows: dict[Labels, list[float]] = {}
        self.rows_max = rows_max

    def row(self, labels: Labels) -> list[float]:
        row = self.rows.get(labels)
        if row is None:
            if len(self.rows) >= self.rows_max:
                labels = (OTHER,) * len(labels)
                return self.rows.setdefault(labels, [0.0])
            row = self.rows[labels] = [0.0]
        return row


class _RequestRow:
    """Everything that one finished request of these labels adds to."""

    __slots__ = ("added", "count", "duration", "per_token", "to_first_token")

    def __init__(
        self,
        count: list[float],
        duration: list[float],
        to_first_token: list[float],
        per_token: list[float],
        added: list[float],
    ) -> None:
        self.count = count
        self.duration = duration
        self.to_first_token = to_first_token
        self.per_token = per_token
        self.added = added


class Metrics(Collector):
    """Built once a process. The methods are called in the loop's thread; `collect` and `snapshot` from
    any.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._requests = _Numbers(definitions.REQUESTS, REQUEST_ROWS_MAX)
        self._duration = _Histogram(definitions.DURATION)
        self._to_first_token = _Histogram(definitions.FIRST_TOKEN)
        self._per_token = _Histogram(definitions.PER_TOKEN)
        self._added = _Histogram(definitions.ADDED)
        self._tokens = _Numbers(definitions.TOKENS, TOKEN_ROWS_MAX * len(TOKEN_KINDS))
        self._delivered = _Numbers(definitions.DELIVERED, TOKEN_ROWS_MAX)
        self._refusals = _Numbers(definitions.REFUSALS)
        self._ignored = _Numbers(definitions.IGNORED)
        self._upstream_errors = _Numbers(definitions.UPSTREAM_ERRORS)
        self._anomalies = _Numbers(definitions.ANOMALIES)
        self._degraded = _Numbers(definitions.DEGRADED)
        self._reservations = _Numbers(definitions.RESERVATIONS)
        self._journal = _Numbers(definitions.JOURNAL)
        self._redis = _Histogram(definitions.REDIS)
        self._waiting = _Numbers(definitions.WAITING)
        self._waiting_bytes = _Numbers(definitions.WAITING_BYTES)
        self._wait = _Histogram(definitions.WAIT)
        self._waits = _Numbers(definitions.WAITS)
        self._waiting_bytes_row = self._waiting_bytes.row(())
        self._open_row = self._reservations.row(())
        self._journal_row, self._redis_row = self._journal.row(()), self._redis.row(())

        self._request_rows: dict[tuple[str, str, str, str], _RequestRow] = {}
        self._token_rows: dict[tuple[str, str], list[list[float]]] = {}
        self._models: frozenset[str] | None = None
        if registry is not None:
            registry.register(self)

    def set_models(self, models: Iterable[str]) -> None:
        """The catalogue's model names: from now on any other name counts as `other`. Series that exist go
        on.
        """
        self._models = frozenset(models)

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
        """One request has ended: once for each, whatever its ending. Times in seconds, None where there
        was no token to time.
        """
        row = self._request_rows.get((route, model, cls, ending))
        if row is None:
            row = self._new_request_row(route, model, cls, ending)
        row.count[0] += 1
        cells = row.duration
        cells[bisect_left(DURATION_BUCKETS_S, duration_s)] += 1
        cells[-1] += duration_s
        cells = row.added
        cells[bisect_left(ADDED_BUCKETS_S, added_s)] += 1
        cells[-1] += added_s
        if ttft_s is not None:
            cells = row.to_first_token
            cells[bisect_left(FIRST_TOKEN_BUCKETS_S, ttft_s)] += 1
            cells[-1] += ttft_s
        if tpot_s is not None:
            cells = row.per_token
            cells[bisect_left(PER_TOKEN_BUCKETS_S, tpot_s)] += 1
            cells[-1] += tpot_s

    def tokens(self, tenant: str, model: str, prompt: int, cached: int, output: int, delivered: int) -> None:
        """The tokens of one settled request: billed prompt (`cached` is a part of it), billed output,
        delivered output.
        """
        row = self._token_rows.get((tenant, model))
        if row is None:
            row = self._new_token_row(tenant, model)
        row[0][0] += prompt - cached
        row[1][0] += cached
        row[2][0] += output
        row[3][0] += delivered

    def refused(self, which: str) -> None:
        """A request was refused; `which` limit or check, out of a fixed list."""
        self._refusals.row((which,))[0] += 1

    def ignored_field(self, name: str) -> None:
        """A request said something in vain; `name` out of a fixed list."""
        self._ignored.row((name,))[0] += 1

    def upstream_error(self, instance: str, kind: str) -> None:
        """An instance failed a request; `kind` is an UpstreamFailure or a meter's verdict."""
        self._upstream_errors.row((instance, kind))[0] += 1

    def anomaly(self, kind: str) -> None:
        """A usage figure was missing or wrong."""
        self._anomalies.row((kind,))[0] += 1

    def set_degraded(self, component: str, on: bool) -> None:
        """A component such as `redis` does, or does not, do its work in this process. Summed over
        processes.
        """
        self._degraded.row((component,))[0] = float(on)

    def open_delta(self, n: int) -> None:
        """Reservations opened (+) or settled (−)."""
        self._open_row[0] += n

    def set_journal_entries(self, n: int) -> None:
        """Settles that wait on this process's disk."""
        self._journal_row[0] = n

    def wait_begun(self, asked: str, body_bytes: int) -> None:
        """A request has begun to wait for room; `asked` is its ServiceTier."""
        self._waiting.row((asked,))[0] += 1
        self._waiting_bytes_row[0] += body_bytes

    def wait_ended(self, asked: str, ending: str, seconds: float, body_bytes: int) -> None:
        """It waits no more; `ending` is a WaitEnd. Once for each `wait_begun`."""
        self._waiting.row((asked,))[0] -= 1
        self._waiting_bytes_row[0] -= body_bytes
        self._waits.row((asked, ending))[0] += 1
        cells = self._wait.row((asked,))
        cells[bisect_left(WAIT_BUCKETS_S, seconds)] += 1
        cells[-1] += seconds

    def wait_refused(self, asked: str, ending: str) -> None:
        """A request was not let wait, because of a bound of this process."""
        self._waits.row((asked, ending))[0] += 1

    def redis_roundtrip(self, seconds: float) -> None:
        """One pipeline's time to Redis and back."""
        cells = self._redis_row
        cells[bisect_left(REDIS_BUCKETS_S, seconds)] += 1
        cells[-1] += seconds

    def snapshot(self) -> Snapshot:
        """All figures as they are now, in a form that can be written down and added up."""
        return {
            owner.family.name: [[list(labels), *row] for labels, row in list(owner.rows.items())]
            for owner in self._all()
        }

    def collect(self) -> Iterator[Metric]:
        """For a prometheus_client registry."""
        return families(self.schema(), self.snapshot())

    def schema(self) -> list[Family]:
        """What families there are, whether or not anything was counted."""
        return [owner.family for owner in self._all()]

    def _all(self) -> list[_Numbers | _Histogram]:
        return [value for value in vars(self).values() if isinstance(value, _Numbers | _Histogram)]

    def _known_model(self, model: str) -> str:
        return model if self._models is None or model in self._models else OTHER

    def _new_request_row(self, route: str, model: str, cls: str, ending: str) -> _RequestRow:
        asked = (route, model, cls, ending)
        known = self._known_model(model)
        if len(self._requests.rows) >= REQUEST_ROWS_MAX:
            known = OTHER
        labels = (route, known, cls)
        row = _RequestRow(
            self._requests.row((*labels, ending)),
            self._duration.row(labels),
            self._to_first_token.row(labels),
            self._per_token.row(labels),
            self._added.row((route,)),
        )
        if (
            known == model
        ):  # a name outside the catalogue is looked up each time: names are the caller's, rows must not be
            self._request_rows[asked] = row
        return row

    def _new_token_row(self, tenant: str, model: str) -> list[list[float]]:
        known = self._known_model(model)
        full = len(self._token_rows) >= TOKEN_ROWS_MAX
        whose = OTHER if full else tenant
        row = [self._tokens.row((whose, known, kind)) for kind in TOKEN_KINDS]
        row.append(self._delivered.row((whose, known)))
        if known == model and not full:
            self._token_rows[tenant, model] = row
        return row
