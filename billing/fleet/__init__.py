"""The engines that there are, and what they say of themselves."""
