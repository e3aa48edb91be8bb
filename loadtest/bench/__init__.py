"""The side-by-side benchmark: a gateway alone on one core, a bare backend and the driver on another.

CPU time per request and per streamed token is the figure to trust; seconds on a busy machine are noisy.
"""
