"""The database's history; `billing.migrate` brings a database to its head."""
