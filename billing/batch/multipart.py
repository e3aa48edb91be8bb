"""Reads a form with a file (`multipart/form-data`) while it arrives: the file is passed on piece by piece and
never held. Pure.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

_FIELD_BYTES_MAX: Final = 4_096
_HEAD_BYTES_MAX: Final = 8_192
_PARTS_MAX: Final = 16
_BOUNDARY: Final = re.compile(r'multipart/form-data;.*?boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.I)
_NAME: Final = re.compile(rb'form-data;.*?\bname="([^"]*)"', re.I | re.S)
_FILENAME: Final = re.compile(rb'filename="([^"]*)"', re.I)


class NotAForm(ValueError):
    """It is not such a form, or has more in it than a form with one file has."""


@dataclass(slots=True)
class Form:
    """What has arrived so far. `fields` by name; `filename` is None before the file has begun."""

    fields: dict[str, str]
    filename: str | None = None


class FormReader:
    """One form with one file, in a field `file`. Not for two threads at once."""

    def __init__(self, content_type: str) -> None:
        """Raises NotAForm."""
        found = _BOUNDARY.match(content_type.strip())
        if found is None:
            raise NotAForm
        self.form = Form({})
        self.complete = False
        self._mark = b"\r\n--" + (found[1] or found[2]).encode("latin-1", "replace")
        # The first boundary has no line before it.
        self._held = b"\r\n"
        self._part: str | None = None
        self._value = b""
        self._parts = 0
        self._step: Callable[[], tuple[bool | None, bytes]] = self._read_content

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The pieces of the file that have arrived. Raises NotAForm."""
        self._held += piece
        while not self.complete:
            more, content = self._step()
            if self._part == "file" and content:
                yield content
            elif content and self._part is not None:
                self._value += content
                if len(self._value) > _FIELD_BYTES_MAX:
                    raise NotAForm
            if more is None:
                return
            if more and self._part is not None:
                self._end_part()

    def _read_content(self) -> tuple[bool | None, bytes]:
        """Content up to a boundary (true), or all that is certainly content (None: more must arrive)."""
        end = self._held.find(self._mark)
        if end < 0:
            keep = len(self._mark) - 1
            content, self._held = self._held[:-keep], self._held[-keep:]
            return None, content
        content, self._held = self._held[:end], self._held[end + len(self._mark) :]
        self._step = self._read_boundary
        return True, content

    def _read_boundary(self) -> tuple[bool | None, bytes]:
        if len(self._held) < 2:
            return None, b""
        if self._held[:2] == b"--":
            self.complete = True
        elif self._held[:2] != b"\r\n":
            raise NotAForm
        self._step = self._read_head
        return False, b""

    def _read_head(self) -> tuple[bool | None, bytes]:
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            if len(self._held) > _HEAD_BYTES_MAX:
                raise NotAForm
            return None, b""
        head, self._held = self._held[:end], self._held[end + 4 :]
        name = _NAME.search(head)
        self._parts += 1
        if name is None or self._parts > _PARTS_MAX:
            raise NotAForm
        self._part, self._value = name[1].decode("utf-8", "replace"), b""
        if self._part == "file":
            if self.form.filename is not None:
                raise NotAForm
            filename = _FILENAME.search(head)
            self.form.filename = filename[1].decode("utf-8", "replace") if filename else ""
        self._step = self._read_content
        return False, b""

    def _end_part(self) -> None:
        if self._part is not None and self._part != "file":
            self.form.fields[self._part] = self._value.decode("utf-8", "replace")
        self._part = None
