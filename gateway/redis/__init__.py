"""Redis: its connection, its commands, and the journal of what it could not take."""
