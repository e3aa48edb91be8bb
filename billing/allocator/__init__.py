"""The allocator: once a second it writes the numbers that a cell's scripts decide by, and records what
came of them.
"""
