"""Contracts: capacity assigned to a tenant in a pool for a term. No more is ever signed than there is."""
