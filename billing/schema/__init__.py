"""The SQL tables, as SQLAlchemy Core. One room per subject; none of them opens a connection."""
