"""The allocator: its arithmetic without a server, its rounds on a real Valkey and PostgreSQL."""
