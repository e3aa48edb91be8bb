"""Scenarios of capacity: what a contract, a fair share, a loan and a reclaim are worth under load, on
simulated engines and over HTTP only.

`python -m loadtest.scenarios [NAME…]`. Each starts a whole TAAS of its own, drives it at an open rate, and
holds what callers saw against a figure.
"""
