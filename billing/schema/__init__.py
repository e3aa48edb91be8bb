"""The SQL tables, as SQLAlchemy Core. One module per subject; none of them opens a connection."""
