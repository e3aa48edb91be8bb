"""Shared fixtures: a real Valkey and a real PostgreSQL, started once a run."""

pytest_plugins = ["tests.fixtures.valkey", "tests.fixtures.postgres", "tests.fixtures.gateway", "tests.fixtures.engine"]
