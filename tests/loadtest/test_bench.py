"""The benchmark measures both proxies in one run, and says what it found in the promised form."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from loadtest import plain_http
from loadtest.children import Child, answers, cores, free_port, python


def bench(folder: Path, *words: str) -> tuple[str, dict[str, Any]]:
    """One short round of the benchmark: what it shows, and its results."""
    out = folder / "bench.json"
    given = ["--rounds", "1", "--scale", "0.05", "--out", str(out), *words]
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.bench", *given],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(out.read_text())


def test_bench_measures_gateway_and_naive_proxy_and_checks_the_bill(tmp_path: Path) -> None:
    shown, results = bench(tmp_path, "--memory", "300")
    assert set(results) == {"gateway", "naive"}
    for result in results.values():
        assert result["problems"] == []
        assert result["rss_mb"] > 1
        assert result["memory"]["requests"] == 300
        assert all(result[name] > 0 for name in ("p50_ms", "p99_ms", "ttft_ms_p50", "requests_per_s"))
        assert all(result[name] >= 0 for name in ("cpu_us_request", "cpu_us_token", "cpu_us_token_burst"))
    assert results["naive"]["valkey_us_request"] is None
    assert results["gateway"]["both_us_request"] >= results["gateway"]["valkey_us_request"] >= 0
    assert "CPU µs/request" in shown


def test_bench_compares_gateways_of_several_sizes(tmp_path: Path) -> None:
    # One gateway is in both tables. Many tenants: tests/loadtest/test_scaling.py.
    shown, results = bench(tmp_path, "--processes", "1", "2", "--tenants", "10")
    assert set(results) == {"1 process, 10 tenants", "2 processes, 10 tenants"}
    assert all(result["problems"] == [] for result in results.values())
    assert "by processes" in shown
    assert "by tenants" in shown


def test_the_backend_tells_usage_on_chunks_only_where_it_is_asked_and_named(tmp_path: Path) -> None:
    port = free_port()
    backend = Child("backend", python("-m", "loadtest.bench.backend", str(port)), cores()[0], tmp_path)
    try:
        backend.wait_until(answers(f"http://127.0.0.1:{port}/health"))
        for model, asked, chunks in (("s128x0", True, 1), ("u128x0", False, 1), ("u128x0", True, 129)):
            body = {
                "model": model,
                "messages": [],
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": asked},
            }
            text = plain_http.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body).text
            assert (text.count('" tok'), text.count('"usage"'), text.count("[DONE]")) == (128, chunks, 1)
    finally:
        backend.stop()
