"""Which instance has most of a prompt in its cache, and how long each would take to begin the answer."""
