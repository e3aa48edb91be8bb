"""The `taas` command against a live admin API."""
