"""Requests that wait: the queue, the pace of prefills, refusals, and requests while Redis is away."""
