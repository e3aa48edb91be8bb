"""Requests as they come: what is open, what has ended, and the way of events from Redis to the ledger."""
