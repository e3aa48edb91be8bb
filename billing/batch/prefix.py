"""In which order the lines of a batch are sent: those whose prompts begin alike one after the other, so that
an engine still has the beginning in its prefix cache. Pure.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import orjson

# Chat templates write them in about this order. A prompt is compared up to each of these lengths in turn.
_PARTS: Final = ("tools", "system", "instructions", "messages", "prompt", "input", "query")
_BYTES: Final = (256, 1_024, 4_096, 16_384)
_HASH_BYTES: Final = 8


def prefix_key(body: Mapping[str, Any]) -> bytes:
    """Sorted by this key, prompts with a common beginning are neighbours: those that have the most in common
    closest to each other.
    """
    text = orjson.dumps([body[part] for part in _PARTS if body.get(part)])
    return b"".join(blake2b(text[:size], digest_size=_HASH_BYTES).digest() for size in _BYTES)
