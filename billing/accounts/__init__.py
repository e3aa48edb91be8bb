"""Who may change things, and the log of what was changed. It knows neither HTTP nor Redis."""
