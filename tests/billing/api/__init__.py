"""The admin API over real PostgreSQL and Valkey."""
