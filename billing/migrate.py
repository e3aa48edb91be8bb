"""Upgrades a database to the newest schema. Only one process does it at a time. It knows no table."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, text

from billing.database import connect, require_version
from billing.schema.locks import AdvisoryLock


def alembic_config() -> Config:
    """The configuration without an ini file; the caller puts a `connection` into its attributes."""
    folder = Path(__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("version_locations", str(folder / "versions").replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    return config


def upgrade(database_url: str) -> None:
    """Run all missing migrations. Processes that start together wait for the first one; it is all or nothing.
    Raises DatabaseError.
    """
    engine = connect(database_url, poolclass=NullPool)
    with engine.connect() as connection:
        require_version(connection)
        # The transaction's own lock: freed with it, whether it commits, fails or its process is killed.
        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": AdvisoryLock.MIGRATIONS})
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
