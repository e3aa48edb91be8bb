"""Figures between counting and scraping: written down, added up over processes, given their Prometheus
form. Counts nothing itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

# Family name → rows of [label values, number …]; one number, or of a histogram the buckets, the overflow and
# the sum. Plain JSON.
Snapshot = dict[str, list[list[Any]]]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric's name (a counter's without `_total`), kind and labels; of a histogram also the upper
    bounds of its buckets.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()


def add_up(schema: Iterable[Family], living: Iterable[Snapshot], ended: Iterable[Snapshot] = ()) -> Snapshot:
    """One snapshot of many processes. Counters and histograms of ended ones stay in the sum (a counter
    must not fall), gauges go.
    """
    gauges = {family.name for family in schema if family.kind == "gauge"}
    rows: dict[str, dict[tuple[str, ...], list[float]]] = {}
    for snapshot, alive in [(one, True) for one in living] + [(one, False) for one in ended]:
        for name, entries in snapshot.items():
            if not alive and name in gauges:
                continue
            family = rows.setdefault(name, {})
            for labels, *numbers in entries:
                known = family.get(tuple(labels))
                family[tuple(labels)] = (
                    numbers if known is None else [a + b for a, b in zip(known, numbers, strict=True)]
                )
    return {
        name: [[list(labels), *numbers] for labels, numbers in family.items()]
        for name, family in rows.items()
    }


def families(schema: Iterable[Family], snapshot: Snapshot) -> Iterator[Metric]:
    """Prometheus' metric families, one for each of `schema`, empty ones too: a series that is missing
    cannot be alerted on.
    """
    for family in schema:
        rows = snapshot.get(family.name, [])
        if family.kind == "histogram":
            yield _histogram(family, rows)
            continue
        made = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
        metric = made(family.name, family.help, labels=family.labels)
        for labels, value in rows:
            metric.add_metric(labels, value)
        yield metric


def _histogram(family: Family, rows: list[list[Any]]) -> HistogramMetricFamily:
    metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for labels, *numbers in rows:
        total = 0.0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, family.bounds), "+Inf"), numbers[:-1], strict=True):
            total += count
            buckets.append((bound, total))
        metric.add_metric(labels, buckets, sum_value=numbers[-1])
    return metric
