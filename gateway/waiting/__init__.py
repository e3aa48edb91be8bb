"""Who waits, for what, and what they are told: the queue, the pace of prompts, refusals, and requests
while Redis is away.
"""
