"""Migrations: whole, repeatable, safe when two processes start together, and equal to what the code believes."""

import threading

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

import billing.schema.capacity
import billing.schema.catalogue
import billing.schema.ledger  # noqa: F401
from billing.migrate import upgrade
from billing.schema.metadata import metadata


def test_the_migrated_schema_is_the_one_in_the_code(database_url: str) -> None:
    upgrade(database_url)
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            upgrade(database_url)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert connection.execute(text("select count(*) from alembic_version")).scalar_one() == 1
    engine.dispose()
