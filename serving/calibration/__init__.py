"""Calibration: load one idle engine, see what it can do, and say that in work units. It knows engines over
HTTP; no registry, no table.
"""
