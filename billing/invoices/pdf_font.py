"""The font of invoices as PDF, which is embedded: whoever reads one sees the same. It owns which letters
there are, and what is shown instead of others.
"""

import struct
import threading
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import reportlab
from reportlab.lib.fonts import addMapping
from reportlab.pdfbase.pdfmetrics import registerFont
from reportlab.pdfbase.ttfonts import TTFError, TTFont

from billing.refusals import Conflict

# What comes with reportlab: the letters of Western Europe and Turkey, and some more.
_FONTS: Final = Path(reportlab.__file__).parent / "fonts"
INSTEAD: Final = "?"
# Whoever uses a font: reportlab reads it with one place in the file for all.
USING: Final = threading.Lock()
# What reportlab raises for a file that is damaged.
_DAMAGED: Final = (TTFError, OSError, struct.error, KeyError, IndexError, ValueError)


@dataclass(frozen=True, slots=True)
class Font:
    """The names by which reportlab knows it, and the letters that it has in both."""

    text: str
    bold: str
    letters: frozenset[int]

    def shown(self, text: str) -> str:
        """The text in letters that there are: one that is not there without its marks, or as `?`."""
        if all(ord(letter) in self.letters for letter in text):
            return text
        whole = unicodedata.normalize("NFC", text)
        return "".join(letter if ord(letter) in self.letters else self._instead(letter) for letter in whole)

    def _instead(self, letter: str) -> str:
        if letter.isspace():
            return " "
        if unicodedata.category(letter) in {"Cf", "Mn"}:  # nothing to see
            return ""
        base = unicodedata.normalize("NFD", letter)[0]
        return base if ord(base) in self.letters else INSTEAD


@lru_cache(maxsize=4)
def read_font(path: Path | None) -> Font:
    """This TrueType font, or our own. Raises Conflict if it cannot be used."""
    text, bold = (_FONTS / "Vera.ttf", _FONTS / "VeraBd.ttf") if path is None else (path, path)
    try:
        fonts = {str(file): TTFont(str(file), file) for file in (text, bold)}
    except _DAMAGED as exc:
        raise Conflict(
            f"The font {path} of TAAS_INVOICE_FONT_FILE cannot be used: {exc}", code="no_font"
        ) from exc
    for name, font in fonts.items():
        registerFont(font)
        for is_bold, of in ((0, text), (1, bold)):
            addMapping(name, is_bold, 0, str(of))
    letters = [frozenset(font.face.charToGlyph) for font in fonts.values()]
    return Font(str(text), str(bold), letters[0] & letters[-1])
