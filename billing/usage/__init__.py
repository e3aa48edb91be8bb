"""Requests as they come: what is open, what has ended, and the way of its event from Redis to the ledger."""
