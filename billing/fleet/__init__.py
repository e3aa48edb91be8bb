"""The engines of the installation, and what they report."""
