"""The record of the ignored members of a request: their names, bounded in number, for the answer's header
and, if they are known names, for the receipt and a metric; and the members that no engine gets and a provider
does.

Of ignored members only names are recorded, never values. A name is the path where it was first met, as in
`messages[1].annotations`; the same member of another element of that list counts as the same name.
"""

import re
from contextvars import ContextVar, Token
from typing import Any

from gateway.request import Aside

IGNORED_HEADER = b"x-taas-ignored"
STRICT_HEADER = b"x-taas-strict"
NAMES_MAX = 16
NAME_CHARS_MAX = 64

# Names that are kept, because clients are known to send them. Any other name may be anything that a caller
# has written, so metrics and receipts say `other`.
COUNTED = frozenset(
    {
        "allowed_callers", "annotations", "billing_policy", "cache_control", "client_metadata", "compaction",
        "context_management", "defer_loading", "diagnostics", "eager_input_streaming", "extra_body",
        "fallbacks", "frequency_penalty", "id", "include", "input_examples", "logprobs", "moderation",
        "obfuscation", "prediction", "presence_penalty", "prompt_cache_options", "provider_specific_fields",
        "reasoning", "reasoning_details", "reasoning_summary", "seed", "speed", "store", "stream_options",
        "summary", "thinking", "thinking_blocks", "thinking_token_budget", "tools", "truncation", "usage",
        "user", "verbosity",
    }
)  # fmt: skip

# Where such a field may stand.
_PARENTS = frozenset(
    {
        "citations", "content", "custom", "file", "format", "function", "image_url", "input", "input_audio",
        "json_schema", "messages", "metadata", "output", "response_format", "source", "stream_options",
        "system", "text", "tool_calls", "tool_choice", "tools",
    }
)  # fmt: skip
_OTHER = "other"
_MORE = re.compile(r"\+\d+")
_INDEX = re.compile(r"\[\d+\]")
_NOT_IN_A_HEADER = re.compile(r"[^A-Za-z0-9_.\[\]-]")


class IgnoredNames:
    """The ignored names of one request. At most `NAMES_MAX` names are kept; the rest is counted. `aside`:
    what is for providers.
    """

    __slots__ = ("_first_places", "_more", "aside")

    def __init__(self) -> None:
        self._first_places: dict[str, str] = {}
        self._more = 0
        self.aside: list[Aside] = []

    def note(self, path: str) -> None:
        """Remember the member at `path`, made safe for a header."""
        place = _NOT_IN_A_HEADER.sub("_", path[:NAME_CHARS_MAX])
        name = _INDEX.sub("", place)
        if name in self._first_places:
            return
        if len(self._first_places) < NAMES_MAX:
            self._first_places[name] = place
        else:
            self._more += 1

    def places(self) -> tuple[str, ...]:
        """The first path of each name, in the order in which they were met; then `+N` if there were N
        more.
        """
        more = (f"+{self._more}",) if self._more else ()
        return (*self._first_places.values(), *more)


def keep_aside(holder: dict[str, Any], name: str, value: Any) -> None:
    """Remember a member for providers in the record that is open, if one is."""
    names = _current.get()
    if names is not None:
        names.aside.append(Aside(holder, name, value))


_current: ContextVar[IgnoredNames | None] = ContextVar("ignored_names", default=None)


class Recording:
    """While this context is open, checkers note what they drop in the `IgnoredNames` that it returns."""

    __slots__ = ("_names", "_token")

    _token: "Token[IgnoredNames | None]"

    def __enter__(self) -> IgnoredNames:
        self._names = IgnoredNames()
        self._token = _current.set(self._names)
        return self._names

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def note(path: str) -> None:
    """Note a path in the record that is open, if one is."""
    names = _current.get()
    if names is not None:
        names.note(path)


def header_value(places: tuple[str, ...]) -> bytes:
    """The value of the answer's header."""
    return ", ".join(places).encode()


def metric_name(place: str) -> str:
    """The label under which a metric counts this name: the member's own name without its path."""
    name = _INDEX.sub("", place.rpartition(".")[2])
    return name if name in COUNTED else _OTHER


def kept_names(places: tuple[str, ...]) -> tuple[str, ...]:
    """What the usage event keeps of these names: those that are known. The caller's own words are in the
    answer's header only.
    """
    return tuple(dict.fromkeys(map(_kept, places)))


def _kept(place: str) -> str:
    *parents, name = _INDEX.sub("", place).split(".")
    known = name in COUNTED and _PARENTS.issuperset(parents)
    return place if known or _MORE.fullmatch(place) else _OTHER
