"""The allocator: once a second it writes the figures by which a cell's scripts decide, and records what came
of them.
"""
