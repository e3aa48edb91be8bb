"""What is counted, and that labels cannot grow without bound."""

from prometheus_client import generate_latest

from gateway.metrics import OTHER, ROWS_MAX, SERIES_MAX, Metrics, _Kept


def finish(metrics: Metrics, model: str = "m", ending: str = "complete", ttft_s: float | None = 0.2) -> None:
    metrics.request_finished("chat", model, "on_demand", ending, 1.5, ttft_s, 0.02, 0.0004)


def test_a_finished_request_is_in_every_family() -> None:
    metrics = Metrics()
    finish(metrics)
    finish(metrics, ending="client_disconnect", ttft_s=None)
    labels = {"route": "chat", "model": "m", "class": "on_demand"}
    value = metrics.registry.get_sample_value
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
    metrics = Metrics()
    metrics.request_finished("chat", "m", "on_demand", "complete", 10_000.0, None, None, 0.0)
    labels = {"route": "chat", "model": "m", "class": "on_demand"}
    assert (
        metrics.registry.get_sample_value("taas_request_duration_seconds_bucket", labels | {"le": "600.0"})
        == 0
    )
    assert (
        metrics.registry.get_sample_value("taas_request_duration_seconds_bucket", labels | {"le": "+Inf"})
        == 1
    )


def test_tokens_are_counted_by_tenant_model_and_kind() -> None:
    metrics = Metrics()
    metrics.tokens("t", "m", prompt=100, cached=64, output=20, delivered=19)
    metrics.tokens("t", "m", prompt=1, cached=0, output=2, delivered=2)
    kinds = ("input", "cached_input", "output")
    found = {
        k: metrics.registry.get_sample_value("taas_tokens_total", {"tenant": "t", "model": "m", "kind": k})
        for k in kinds
    }
    # Disjoint: the sum counts each token once.
    assert found == {"input": 37, "cached_input": 64, "output": 22}
    assert (
        metrics.registry.get_sample_value("taas_delivered_tokens_total", {"tenant": "t", "model": "m"}) == 21
    )


def test_gauges_and_the_rest() -> None:
    metrics = Metrics()
    metrics.count_open(lambda: 2)
    metrics.set_journal_entries(7)
    metrics.set_degraded("redis", on=True)
    metrics.refused("requests_per_minute")
    metrics.upstream_error("i-1", "refused")
    metrics.anomaly("usage_missing")
    metrics.redis_roundtrip(0.0003)
    value = metrics.registry.get_sample_value
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
    text = generate_latest(Metrics().registry).decode()
    assert "taas_reservations_open 0.0" in text
    assert "# TYPE taas_requests_total counter" in text


def rows(metrics: Metrics, family: str) -> dict[tuple[str, ...], float]:
    """The values of a counter or of a histogram's counts, by their labels."""
    return all_rows(metrics)[family]


def all_rows(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """The same of every family."""
    return {
        metric.name: {
            tuple(sample.labels.values()): sample.value
            for sample in metric.samples
            if sample.name in {f"{metric.name}_total", f"{metric.name}_count"}
        }
        for metric in metrics.registry.collect()
    }


def test_fault_46_model_outside_the_catalogue_is_other() -> None:
    metrics = Metrics()
    metrics.set_models(["m"])
    for index in range(1000):
        finish(metrics, model=f"guess-{index}")
        metrics.tokens("t", f"guess-{index}", 1, 0, 0, 0)
    labels = {"route": "chat", "model": OTHER, "class": "on_demand", "ending": "complete"}
    assert metrics.registry.get_sample_value("taas_requests_total", labels) == 1000
    assert (
        metrics.registry.get_sample_value(
            "taas_tokens_total", {"tenant": "t", "model": OTHER, "kind": "input"}
        )
        == 1000
    )
    assert len(rows(metrics, "taas_requests")) == 1


def test_fault_46_series_are_bounded_whatever_the_labels() -> None:
    metrics = Metrics()
    for index in range(10_000):
        finish(metrics, model=f"m-{index}")
        metrics.tokens(f"t-{index}", "m", 1, 0, 0, 0)
        metrics.refused(f"w-{index}")
        metrics.ignored_field(f"f-{index}")
        metrics.upstream_error(f"i-{index}", "refused")
    families = {
        "taas_requests": ROWS_MAX,
        "taas_request_duration_seconds": ROWS_MAX,
        "taas_tokens": 3 * ROWS_MAX,
        "taas_delivered_tokens": ROWS_MAX,
        "taas_refusals": SERIES_MAX,
        "taas_ignored_fields": SERIES_MAX,
        "taas_upstream_errors": SERIES_MAX,
    }
    counted = all_rows(metrics)
    for family, most in families.items():
        assert most < len(counted[family]) <= most + 3, family
        total = 0 if family == "taas_delivered_tokens" else 10_000
        assert sum(counted[family].values()) == total, family
    assert counted["taas_upstream_errors"][OTHER, "refused"] == 10_000 - SERIES_MAX
    assert counted["taas_tokens"][OTHER, "m", "input"] == 10_000 - ROWS_MAX, "its model is known"


def test_labels_beyond_the_bound_are_looked_up_once() -> None:
    """With very many tenants nearly every request has such labels."""
    made = []

    def make(*labels: str) -> tuple[str, ...]:
        made.append(labels)
        return labels

    kept = _Kept(make, 2)
    found = [kept[f"t-{index}", "m"] for index in range(100)]
    assert made == [("t-0", "m"), ("t-1", "m"), (OTHER, "m")]
    assert found[2:] == [(OTHER, "m")] * 98
