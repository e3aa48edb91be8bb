"""Text to tokens and back: pieces of up to four characters with the blank before them, and the words that the
engine "generates".

Every generated word is one piece again when it is split, so whoever counts a text finds as many tokens as the
engine says.
"""

import re
import zlib
from functools import lru_cache

VOCABULARY_TOKENS = 49_152
_PIECE = re.compile(r"\s?\S{1,4}|\s")
_WORDS_TEXT = (
    "tide wind salt foam gull reef wave sand kelp dune cove surf crab mist rain bell mast sail keel rope "
    "port pier dock buoy "
    "fish net oar isle bay gulf cape rock moon star dawn dusk sky sun fog ice eel ray glow haze blue grey "
    "teal cold "
    "warm calm wild slow fast deep wide long low high far near and the of by"
)
WORDS = tuple(" " + word for word in _WORDS_TEXT.split())
_OWN_WORDS = frozenset(WORDS)
# Pieces seen, so that /detokenize can say them again; bounded, as a server's memory must be.
_PIECES_REMEMBERED_MAX = 100_000
_remembered: dict[int, str] = {}


def split(text: str) -> list[str]:
    """The tokens of a text, whose concatenation is the text."""
    return _PIECE.findall(text)


def own_words_apart(text: str) -> tuple[str, str]:
    """A text, and the words at its end that the engine could have generated: as a model does, it goes on from
    these as if it had not stopped.
    """
    pieces = split(text)
    at = len(pieces)
    while at and pieces[at - 1] in _OWN_WORDS:
        at -= 1
    return ("".join(pieces[:at]), "".join(pieces[at:])) if at else (text, "")


def fingerprint(text: str) -> int:
    """The same number for the same text in every process."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=4096)
def token_id(piece: str) -> int:
    """A token's number below the vocabulary's size; two pieces may share one."""
    number = fingerprint(piece) % VOCABULARY_TOKENS
    if len(_remembered) < _PIECES_REMEMBERED_MAX:
        _remembered[number] = piece
    return number


def detokenize(token_ids: list[int]) -> str:
    """The text of tokens that were split here before; others show as their number."""
    return "".join(_remembered.get(number, f"<{number}>") for number in token_ids)


def word_index(seed: int, position: int) -> int:
    """Which word comes at a position of the text that `seed` stands for."""
    mixed = (seed + position * 0x9E3779B1) & 0xFFFFFFFF
    return ((mixed ^ (mixed >> 15)) * 0x85EBCA6B >> 16) % len(WORDS)


def natural_length(seed: int) -> int:
    """After how many tokens (the end token included) the text ends by itself: 24 to 279."""
    return 24 + (seed ^ (seed >> 9)) % 256
