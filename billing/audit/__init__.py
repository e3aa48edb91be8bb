"""Checks that produced = billed + absorbed + open, engine by engine and request by request."""
