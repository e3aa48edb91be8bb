"""Calibration: loads one idle engine and measures what it can do, in work units. It knows engines over HTTP;
no registry, no table.
"""
