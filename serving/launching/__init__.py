"""Launchers: they start and stop workers, so that what runs is what the catalogue says. One small interface,
and behind it processes of this machine, or actors of a Ray cluster.
"""
