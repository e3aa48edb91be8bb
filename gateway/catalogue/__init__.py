"""Tenants, keys, models and instances, as Redis has them."""
