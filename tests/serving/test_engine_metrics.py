"""Promises of reading an engine's metrics."""

from pathlib import Path

import pytest

from billing.wire.instance_entry import EngineLoad
from billing.wire.tokens import CounterPair
from serving.engine_metrics import parse_metrics

# Captured from vLLM 0.32, less the series that nobody could mistake for ours.
REAL = (Path(__file__).parent / "vllm_metrics.txt").read_text()


def test_real_metrics_are_read() -> None:
    reading = parse_metrics(REAL)
    assert reading.load == EngineLoad(running=2, waiting=1, kv_usage=0.03296703296703296)
    assert reading.counters == CounterPair(prompt=396, generation=69)
    assert not reading.idle


def test_series_whose_names_begin_alike_are_not_counted_in() -> None:
    assert "vllm:prompt_tokens_by_source_total" in REAL
    assert "vllm:num_requests_waiting_by_reason" in REAL
    assert "vllm:generation_tokens_created" in REAL


def test_several_engine_cores_are_added_up() -> None:
    second = "\n".join(
        line.replace('engine="0"', 'engine="1"') for line in REAL.splitlines() if not line.startswith("#")
    )
    both = parse_metrics(REAL + "\n" + second)
    assert both.counters == CounterPair(prompt=792, generation=138)
    assert both.load.running == 4
    assert both.load.kv_usage == parse_metrics(REAL).load.kv_usage


def test_large_counters_in_scientific_notation_are_exact() -> None:
    text = REAL.replace(
        'vllm:prompt_tokens_total{engine="0",model_name="smollm2-135m"} 396.0',
        'vllm:prompt_tokens_total{engine="0",model_name="smollm2-135m"} 1.234567890123e+012',
    )
    assert parse_metrics(text).counters.prompt == 1_234_567_890_123


@pytest.mark.parametrize(
    "gone", ["vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:num_requests_running"]
)
def test_a_missing_metric_is_an_error_not_a_zero(gone: str) -> None:
    text = "\n".join(line for line in REAL.splitlines() if not line.startswith(gone + "{"))
    with pytest.raises(ValueError, match=gone):
        parse_metrics(text)


def test_an_empty_page_is_an_error() -> None:
    with pytest.raises(ValueError, match="lack"):
        parse_metrics("")


@pytest.mark.parametrize("value", ["NaN", "+Inf"])
@pytest.mark.parametrize("name", ["prompt_tokens_total", "kv_cache_usage_perc"])
def test_a_figure_that_is_no_number_is_no_reading(name: str, value: str) -> None:
    lines = [
        f"{line.rpartition(' ')[0]} {value}" if line.startswith(f"vllm:{name}{{") else line
        for line in REAL.splitlines()
    ]
    with pytest.raises(ValueError, match=name):
        parse_metrics("\n".join(lines))
