"""Migrations: whole, repeatable, safe when two processes start together, and equal to what the code
believes.
"""

import threading
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, Engine, MetaData, create_engine, select, text

import billing.schema.accounts
import billing.schema.batches
import billing.schema.books
import billing.schema.capacity
import billing.schema.catalogue
import billing.schema.chain
import billing.schema.exports
import billing.schema.findings
import billing.schema.invoices
import billing.schema.ledger
import billing.schema.retention  # noqa: F401
from billing.migrate import alembic_config, upgrade
from billing.schema.metadata import metadata

# The last revision of version 0.1, and rows that it wrote.
RELEASED = "0009"
RELEASED_ROWS = Path(__file__).with_name("release_0_1.sql")


def test_the_migrated_schema_is_the_one_in_the_code(database_url: str) -> None:
    upgrade(database_url)
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert _differences(connection) == []
    engine.dispose()


def test_the_migrated_checks_are_those_in_the_code(database_url: str) -> None:
    upgrade(database_url)
    engine = create_engine(database_url)
    with engine.connect() as connection:
        found = connection.execute(
            text(
                "select conrelid::regclass::text, conname from pg_constraint"
                " where contype = 'c' and coninhcount = 0 and connamespace = 'public'::regnamespace"
            )
        ).all()
    engine.dispose()
    declared = {
        (table.name, str(connection.dialect.identifier_preparer.format_constraint(check)))
        for table in metadata.tables.values()
        for check in table.constraints
        if isinstance(check, CheckConstraint)
    }
    assert {(table, name) for table, name in found if table != "alembic_version"} == declared


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


def test_a_database_of_the_last_release_is_upgraded_and_keeps_every_value(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, RELEASED)
        connection.exec_driver_sql(RELEASED_ROWS.read_text())
        connection.commit()
    before = _rows(engine)
    assert sum(map(len, before.values())) > 30
    upgrade(database_url)
    after = _rows(engine)
    for table, rows in before.items():
        kept = [{column: row[column] for column in rows[0]} for row in after[table]]
        assert kept == rows, table
    with engine.connect() as connection:
        assert _differences(connection) == []
    engine.dispose()


def _differences(connection: Connection) -> list[object]:
    """Of the tables in the code and in the database, whose partitions are no tables of their own."""

    def is_whole(name: str | None, type_: str, _: object) -> bool:
        return type_ != "table" or not str(name).startswith("usage_event_d")

    context = MigrationContext.configure(connection, opts={"include_name": is_whole})
    return list(compare_metadata(context, metadata))


def _rows(engine: Engine) -> dict[str, list[dict[str, object]]]:
    """Every row of every table that has any, in the order of its key."""
    found = MetaData()
    found.reflect(engine)
    with engine.connect() as connection:
        read = {
            table.name: [
                dict(row._mapping)
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in found.sorted_tables
            if table.name != "alembic_version"
        }
    return {name: rows for name, rows in read.items() if rows}
