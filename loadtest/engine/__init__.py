"""A simulated vLLM server: the endpoints, JSON forms, ids, counters and endings of vLLM 0.32, without a
model.

Usage is exact, text is a function of prompt and seed, speed follows a model (prefill rate, step time, slots),
and every way an engine can fail is on call. What it must not know: the gateway. It is an engine to whoever
speaks HTTP to it.
"""
