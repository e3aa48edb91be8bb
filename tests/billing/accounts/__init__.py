"""Tests of accounts: roles, admin keys, the audit log."""
