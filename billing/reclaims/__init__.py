"""Reclaims: machines of a pool that another use takes, on the terms that were signed, and that come back
when they are released.
"""
