"""What was billed and absorbed, and to whom; receipts, and usage by day."""
