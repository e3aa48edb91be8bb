"""Invoices: what a tenant owes for a period, as a document that never changes."""
