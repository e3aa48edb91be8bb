"""Reclaims: another use takes machines of a pool, on signed terms, and gives them back on release."""
