"""The figures of several processes on their way to one page, through pipes."""

import os

from prometheus_client import CollectorRegistry

from gateway.metrics.counts import Metrics
from gateway.metrics.shared_figures import SharedFigures, SnapshotWriter
from tests.gateway.listening import until
from tests.gateway.metrics.test_counts import finish

LABELS = {"route": "chat", "model": "m", "class": "on_demand", "ending": "complete"}


def test_figures_arrive_while_a_process_runs_and_its_counters_stay_when_it_has_ended() -> None:
    figures, registry, metrics = SharedFigures(), CollectorRegistry(), Metrics()
    registry.register(figures)
    finish(metrics)
    metrics.open_delta(1)
    pipe = figures.begun("0-1")
    assert not figures.has_figures("0-1")
    with SnapshotWriter(metrics, pipe) as writer:
        writer.start()
        until(lambda: figures.has_figures("0-1"), "the first figures")
        assert registry.get_sample_value("taas_reservations_open") == 1
        assert registry.get_sample_value("taas_gateway_processes") == 1
        finish(metrics)
    os.close(pipe)
    figures.ended("0-1")
    # the last figures are written at the end
    assert registry.get_sample_value("taas_requests_total", LABELS) == 2
    assert registry.get_sample_value("taas_reservations_open") is None
    assert registry.get_sample_value("taas_gateway_processes") == 0


def test_half_a_snapshot_of_a_killed_process_is_not_read() -> None:
    figures, registry = SharedFigures(), CollectorRegistry()
    registry.register(figures)
    pipe = figures.begun("0-1")
    os.write(pipe, b'{"taas_refusals":[[["tiny"],3]]}\n{"taas_refusals":[[["tiny"],4')
    os.close(pipe)
    figures.ended("0-1")
    assert registry.get_sample_value("taas_refusals_total", {"which": "tiny"}) == 3


def test_a_process_ends_although_nobody_reads_its_figures_any_more() -> None:
    ours, its = os.pipe()
    os.close(ours)
    with SnapshotWriter(Metrics(), its) as writer:
        writer.start()
    os.close(its)
