"""The size of a text in UTF-8 bytes and, roughly, in tokens. For reservations only: the engine's count
replaces it.
"""

# A token is about four bytes of English. Other scripts have more bytes per character, and about as many per
# token.
BYTES_PER_TOKEN = 4
# Roles and markers that a chat template puts around a message.
TOKENS_PER_MESSAGE = 4


def text_bytes(text: str) -> int:
    """The UTF-8 length; free for ASCII text, whose length Python knows."""
    return len(text) if text.isascii() else len(text.encode())


def tokens_of_bytes(size_bytes: int) -> int:
    return (size_bytes + BYTES_PER_TOKEN - 1) // BYTES_PER_TOKEN
