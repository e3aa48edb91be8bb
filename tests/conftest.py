"""Shared fixtures: a real Valkey, a real PostgreSQL and, where asked for, the whole product, each started once a run.

With `pytest -n` a run is one of its processes: each has its own stores.
"""

import pytest

pytest_plugins = [
    "tests.fixtures.valkey",
    "tests.fixtures.postgres",
    "tests.fixtures.gateway",
    "tests.fixtures.engine",
    "tests.fixtures.stack",
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests on real vLLM come last and, with `pytest -n`, in one process: even idle it takes most of a core."""
    items.sort(key=_needs_vllm)
    if config.pluginmanager.hasplugin("xdist"):
        for item in filter(_needs_vllm, items):
            item.add_marker(pytest.mark.xdist_group("vllm"))


def _needs_vllm(item: pytest.Item) -> bool:
    return item.get_closest_marker("vllm") is not None
