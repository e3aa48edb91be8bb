"""HTTP in: connections, heads, bodies, CORS, and what is written to a caller."""
