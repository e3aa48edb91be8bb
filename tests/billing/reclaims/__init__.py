"""Tests of reclaims."""
