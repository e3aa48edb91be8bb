"""Reads an engine's answer: its tokens, its text, its usage. Pure: bytes in, figures out."""
