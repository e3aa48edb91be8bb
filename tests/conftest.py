"""Shared fixtures: a real Valkey, a real PostgreSQL and, where asked for, the whole product, each started
once a run.

With `pytest -n` a run is one of its processes: each has its own stores.
"""

import contextlib
import gc
import importlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.examples import examples

# No bound on the time of an example: a busy machine breaks it.
settings.register_profile(
    "taas", max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("taas")

pytest_plugins = [
    "tests.fixtures.valkey",
    "tests.fixtures.postgres",
    "tests.fixtures.gateway",
    "tests.fixtures.engine",
    "tests.fixtures.secure_stores",
    "tests.fixtures.provider",
    "tests.fixtures.stack",
]


def pytest_sessionstart(session: pytest.Session) -> None:
    """With `pytest -n` each process collects every module, and without bytecode all would compile each at the
    same time. So each first imports a part of its own, and then finds what the others have compiled.
    """
    # Collecting makes millions of objects, and all of them stay.
    gc.disable()
    if given := getattr(session.config, "workerinput", None):
        number, count = int(given["workerid"].removeprefix("gw")), given["workercount"]
        root = Path(__file__).parents[1]
        paths = sorted(path for named in session.config.args for path in (root / named).rglob("test_*.py"))
        for path in paths[number::count]:
            # What cannot be imported is told when it is collected.
            with contextlib.suppress(Exception, pytest.skip.Exception):
                importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests on real vLLM come first: they are a chain of some minutes, which the others run beside. Those
    that measure speed come last, when little else runs. With `pytest -n` each of these groups is for one
    process, and so are the tests on Ray, whose clusters are heavy, those that parse every source file, and
    those of a module that sets up much.
    Billing's tests come after the others, which often wait and so fit beside vLLM: billing's keep the
    cores busy.
    """
    items.sort(key=lambda item: (_ORDER.index(_group(item)), item.path.is_relative_to(_BILLING)))
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            together = item.path.stem if item.get_closest_marker("together") else None
            if group := _group(item) or together:
                item.add_marker(pytest.mark.xdist_group(group))


_BILLING = Path(__file__).with_name("billing")
_ORDER = ("vllm", "ray", "sources", None, "speed")


def _group(item: pytest.Item) -> str | None:
    return next((name for name in _ORDER if name and item.get_closest_marker(name) is not None), None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What runs beside the tests on real vLLM gives way to them: that chain is the longest part of a run."""
    if _group(item) != "vllm" and hasattr(item.config, "workerinput"):
        os.setpriority(os.PRIO_PROCESS, 0, 5)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail where the versions of pytest and pytest-xdist do not fit: each process would start a vLLM of
    its own.
    """
    gc.enable()
    gc.freeze()
    if getattr(session.config.option, "loadgroup", False):
        apart = [
            item.nodeid
            for item in session.items
            if (group := _group(item)) and not item.nodeid.endswith(f"@{group}")
        ]
        assert not apart, f"pytest-xdist ignores the group of {apart[0]}"
