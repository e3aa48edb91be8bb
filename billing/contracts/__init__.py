"""Contracts: capacity assigned to a tenant in a pool for a term. What is signed is never more than there
is.
"""
