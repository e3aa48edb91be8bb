"""Random kills and pauses of every part under load, and every request held against the engines' own count."""
