"""Gateways of several sizes are compared with the first of them; a tenth more is still within."""

from pathlib import Path

import psutil
import pytest

from loadtest import plain_http
from loadtest.bench.__main__ import parse
from loadtest.bench.many_tenants import ManyTenantsStack
from loadtest.bench.scaling import Comparison, Scale, comparisons, is_within, show_comparison
from loadtest.bench.shapes import MODELS
from loadtest.bench.subjects import running_backend
from loadtest.own_stack import Served

FIGURES = ("cpu_us_request", "valkey_us_request", "both_us_request")


def test_what_is_asked_for_is_compared_by_one_thing_at_a_time() -> None:
    arguments = parse(["--processes", "1", "2", "--tenants", "10", "100000"])
    assert comparisons(arguments.processes, arguments.tenants) == [
        Comparison("processes", (Scale(1, 10), Scale(2, 10))),
        Comparison("tenants", (Scale(1, 10), Scale(1, 100_000))),
    ]
    assert comparisons([], []) == []


@pytest.mark.parametrize(("figure", "within"), [(90, True), (110, True), (111, False), (50, True)])
def test_a_tenth_more_is_within(figure: float, within: bool) -> None:
    assert is_within(figure, 100) is within


def test_the_table_says_how_far_each_figure_is_from_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    compared = Comparison("processes", (Scale(1), Scale(2)))
    results = {
        scale.name: {f"{name}{load}": value for name in FIGURES for load in ("", "_1")}
        for scale, value in zip(compared.scales, (100.0, 125.0), strict=True)
    }
    show_comparison(compared, results)
    shown = capsys.readouterr().out
    assert "1 process, 10 tenants" in " ".join(shown.split())
    assert shown.count("+25.0%") == 6


def test_every_tenant_of_many_is_served_by_every_process(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with running_backend(tmp_path) as ports:
        served = [
            Served(model, f"http://127.0.0.1:{port}", 4096, routes=("chat",))
            for model, port in zip(MODELS, ports, strict=True)
        ]
        stack = ManyTenantsStack(tmp_path, served, tenants=30, processes=2, under=())
        try:
            stack.start()
            keys = set(stack.tenant_keys)
            assert len(keys) == 30
            for key in keys:
                answer = plain_http.post(
                    f"{stack.base_url}/chat/completions",
                    headers={"authorization": f"Bearer {key}"},
                    json={"model": MODELS[0], "messages": [{"role": "user", "content": "sea"}]},
                )
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-ratelimit-limit-requests"] == "100000000"
            stack.billing.wait_until(lambda: stack.billed()[0] == 30)
            by_tenant = stack.admin.get("/admin/v1/usage", params={"from": 0, "by": "tenant"}).json()["lines"]
            assert [line["requests"] for line in by_tenant] == [1] * 30
            serving = [pid for pid in stack.gateway.pids() if _is_serving(pid)]
            assert len(serving) == 2
        finally:
            stack.stop()


def _is_serving(pid: int) -> bool:
    return "gateway.process.serve_child" in psutil.Process(pid).cmdline()
