"""Shared fixtures: a real Valkey, a real PostgreSQL and, where asked for, the whole product, each started
once a run.

With `pytest -n` a run is one of its processes: each has its own stores.
"""

import pytest

pytest_plugins = [
    "tests.fixtures.valkey",
    "tests.fixtures.postgres",
    "tests.fixtures.gateway",
    "tests.fixtures.engine",
    "tests.fixtures.secure_stores",
    "tests.fixtures.stack",
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests on real vLLM come last and, with `pytest -n`, in one process: even idle it takes most of a
    core.
    """
    items.sort(key=_needs_vllm)
    if config.pluginmanager.hasplugin("xdist"):
        for item in filter(_needs_vllm, items):
            item.add_marker(pytest.mark.xdist_group("vllm"))


def _needs_vllm(item: pytest.Item) -> bool:
    return item.get_closest_marker("vllm") is not None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail where the versions of pytest and pytest-xdist do not fit: each process would start a vLLM of
    its own.
    """
    if getattr(session.config.option, "loadgroup", False):
        apart = [
            item.nodeid for item in session.items if _needs_vllm(item) and not item.nodeid.endswith("@vllm")
        ]
        assert not apart, f"pytest-xdist ignores the group of {apart[0]}"
