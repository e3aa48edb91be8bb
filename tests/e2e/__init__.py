"""End to end: official SDKs, the gateway, real vLLM, Valkey, PostgreSQL and billing with its audit."""
