"""What is counted, how processes' figures become one, and that labels cannot grow without bound."""

from prometheus_client import CollectorRegistry, generate_latest

from gateway.metrics.counts import OTHER, REQUEST_ROWS_MAX, TOKEN_ROWS_MAX, Metrics
from gateway.metrics.snapshot import add_up


def finish(metrics: Metrics, model: str = "m", ending: str = "complete", ttft_s: float | None = 0.2) -> None:
    metrics.request_finished("chat", model, "on_demand", ending, 1.5, ttft_s, 0.02, 0.0004)


def test_a_finished_request_is_in_every_family() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    finish(metrics)
    finish(metrics, ending="client_disconnect", ttft_s=None)
    labels = {"route": "chat", "model": "m", "class": "on_demand"}
    value = registry.get_sample_value
    assert value("taas_requests_total", labels | {"ending": "complete"}) == 1
    assert value("taas_requests_total", labels | {"ending": "client_disconnect"}) == 1
    assert value("taas_request_duration_seconds_count", labels) == 2
    assert value("taas_request_duration_seconds_sum", labels) == 3.0
    assert value("taas_request_duration_seconds_bucket", labels | {"le": "1.0"}) == 0
    assert value("taas_request_duration_seconds_bucket", labels | {"le": "2.5"}) == 2
    assert value("taas_time_to_first_token_seconds_count", labels) == 1
    assert (
        value("taas_time_to_first_token_seconds_bucket", labels | {"le": "0.2"}) == 1
    )  # a bound is part of its bucket
    assert value("taas_time_to_first_token_seconds_bucket", labels | {"le": "0.1"}) == 0
    assert value("taas_time_per_output_token_seconds_sum", labels) == 0.04
    assert value("taas_gateway_added_seconds_bucket", {"route": "chat", "le": "0.0005"}) == 2


def test_time_beyond_the_last_bound_counts_as_infinite_only() -> None:
    registry = CollectorRegistry()
    Metrics(registry).request_finished("chat", "m", "on_demand", "complete", 10_000.0, None, None, 0.0)
    labels = {"route": "chat", "model": "m", "class": "on_demand"}
    assert registry.get_sample_value("taas_request_duration_seconds_bucket", labels | {"le": "600.0"}) == 0
    assert registry.get_sample_value("taas_request_duration_seconds_bucket", labels | {"le": "+Inf"}) == 1


def test_tokens_are_counted_by_tenant_model_and_kind() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.tokens("t", "m", prompt=100, cached=64, output=20, delivered=19)
    metrics.tokens("t", "m", prompt=1, cached=0, output=2, delivered=2)
    kinds = ("input", "cached_input", "output")
    found = {
        k: registry.get_sample_value("taas_tokens_total", {"tenant": "t", "model": "m", "kind": k})
        for k in kinds
    }
    # Disjoint: the sum counts each token once.
    assert found == {"input": 37, "cached_input": 64, "output": 22}
    assert registry.get_sample_value("taas_delivered_tokens_total", {"tenant": "t", "model": "m"}) == 21


def test_gauges_and_the_rest() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.open_delta(3)
    metrics.open_delta(-1)
    metrics.set_journal_entries(7)
    metrics.set_degraded("redis", on=True)
    metrics.refused("requests_per_minute")
    metrics.upstream_error("i-1", "refused")
    metrics.anomaly("usage_missing")
    metrics.redis_roundtrip(0.0003)
    value = registry.get_sample_value
    assert value("taas_reservations_open") == 2
    assert value("taas_journal_entries") == 7
    assert value("taas_degraded", {"component": "redis"}) == 1
    assert value("taas_refusals_total", {"which": "requests_per_minute"}) == 1
    assert value("taas_upstream_errors_total", {"engine": "i-1", "kind": "refused"}) == 1
    assert value("taas_usage_anomalies_total", {"kind": "usage_missing"}) == 1
    assert value("taas_redis_roundtrip_seconds_count") == 1
    metrics.set_degraded("redis", on=False)
    assert value("taas_degraded", {"component": "redis"}) == 0


def test_families_without_labels_are_there_before_anything_happens() -> None:
    text = generate_latest_of(Metrics)
    assert "taas_reservations_open 0.0" in text
    assert "# TYPE taas_requests_total counter" in text


def generate_latest_of(made: type[Metrics]) -> str:
    registry = CollectorRegistry()
    made(registry)
    return generate_latest(registry).decode()


def test_fault_46_model_outside_the_catalogue_is_other() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.set_models(["m"])
    for index in range(1000):
        finish(metrics, model=f"guess-{index}")
        metrics.tokens("t", f"guess-{index}", 1, 0, 0, 0)
    labels = {"route": "chat", "model": OTHER, "class": "on_demand", "ending": "complete"}
    assert registry.get_sample_value("taas_requests_total", labels) == 1000
    assert (
        registry.get_sample_value("taas_tokens_total", {"tenant": "t", "model": OTHER, "kind": "input"})
        == 1000
    )
    assert len(metrics.snapshot()["taas_requests"]) == 1


def test_fault_46_series_are_bounded_whatever_the_labels() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for index in range(10_000):
        finish(metrics, model=f"m-{index}")
        metrics.tokens(f"t-{index}", "m", 1, 0, 0, 0)
        metrics.refused(f"w-{index}")
        metrics.upstream_error(f"i-{index}", "refused")
    snapshot = metrics.snapshot()
    assert len(snapshot["taas_requests"]) <= REQUEST_ROWS_MAX + 1
    assert len(snapshot["taas_request_duration_seconds"]) <= REQUEST_ROWS_MAX + 1
    assert len(snapshot["taas_tokens"]) <= (TOKEN_ROWS_MAX + 1) * 3
    assert len(snapshot["taas_refusals"]) <= 1001
    assert sum(row[1] for row in snapshot["taas_requests"]) == 10_000
    assert sum(row[1] for row in snapshot["taas_tokens"]) == 10_000
    assert sum(row[1] for row in snapshot["taas_refusals"]) == 10_000


def test_processes_add_up_and_a_dead_one_leaves_its_counters_but_not_its_gauges() -> None:
    one, two = Metrics(), Metrics()
    for metrics in (one, two):
        finish(metrics)
        metrics.open_delta(2)
    total = add_up(one.schema(), [one.snapshot()], [two.snapshot()])
    assert total["taas_requests"] == [[["chat", "m", "on_demand", "complete"], 2.0]]
    assert total["taas_reservations_open"] == [[[], 2.0]]
    ((_, *duration),) = total["taas_request_duration_seconds"]
    assert sum(duration[:-1]) == 2
    assert duration[-1] == 3.0


def test_adding_up_leaves_the_parts_as_they_were() -> None:
    metrics = Metrics()
    finish(metrics)
    before = metrics.snapshot()
    add_up(metrics.schema(), [before, before], [])
    assert before == metrics.snapshot()
