"""Tenants, keys, models, prices and pools in SQL, and their projection to Redis."""
