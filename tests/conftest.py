"""Shared fixtures: a real Valkey, a real PostgreSQL and, where asked for, the whole product, each started once a run."""

pytest_plugins = [
    "tests.fixtures.valkey",
    "tests.fixtures.postgres",
    "tests.fixtures.gateway",
    "tests.fixtures.engine",
    "tests.fixtures.stack",
]
