"""Tenants, keys, models, prices and pools in SQL, and how they get to Redis."""
