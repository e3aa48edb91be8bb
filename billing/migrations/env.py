"""Alembic's entry: runs the migrations on the connection that `billing.migrate` hands it."""

from alembic import context

import billing.schema.accounts
import billing.schema.batches
import billing.schema.books
import billing.schema.budgets
import billing.schema.capacity
import billing.schema.catalogue
import billing.schema.chain
import billing.schema.exports
import billing.schema.findings
import billing.schema.invoices
import billing.schema.ledger  # noqa: F401
from billing.schema.metadata import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
