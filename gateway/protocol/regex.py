"""Caps on regular expressions that an engine would compile into an automaton. It knows the syntax that
engines share, not what a pattern means.

It refuses what engines cannot compile (look-around, back references, unbalanced groups), repetition inside
unbounded repetition, and counted repetition that multiplies out to a large automaton. It takes one pass,
without backtracking and without compiling anything.
"""

import re

from gateway.errors import InvalidRequest
from gateway.protocol.fields import too_long

REGEX_CHARS_MAX = 1024
# Characters and classes after counted repetition is written out.
REGEX_STATES_MAX = 4096
GROUPS_DEEP_MAX = 32

_COUNTED = re.compile(r"\{(\d{1,6})(,(\d{0,6}))?\}")
_GROUP = re.compile(r"\((?:\?(?::|P?<[A-Za-z_]\w*>))?")


def check_regex(param: str, pattern: str) -> None:
    """Raises InvalidRequest with code `invalid_regex`."""
    if len(pattern) > REGEX_CHARS_MAX:
        raise too_long(param, REGEX_CHARS_MAX)
    _Scan(param, pattern).run()


class _Scan:
    """`_atom`: the last thing that a quantifier could apply to, as its states and whether it repeats without
    bound.
    """

    __slots__ = ("_at", "_atom", "_groups", "_param", "_pattern")

    def __init__(self, param: str, pattern: str) -> None:
        self._param = param
        self._pattern = pattern
        self._at = 0
        self._groups: list[tuple[int, bool]] = [(0, False)]
        self._atom: tuple[int, bool] | None = None

    def run(self) -> None:
        pattern = self._pattern
        while self._at < len(pattern):
            char = pattern[self._at]
            if char == "(":
                self._open()
            elif char == ")":
                self._close()
            elif char in "*+?{":
                self._quantify(char)
            elif char in "|^$":
                self._end_atom()
                self._at += 1
            else:
                self._end_atom()
                self._at = self._past_atom(char)
                self._atom = (1, False)
        self._end_atom()
        if len(self._groups) > 1:
            raise self._invalid("a group is not closed")

    def _past_atom(self, char: str) -> int:
        """The end of a character, an escape or a class."""
        if char == "\\":
            following = self._pattern[self._at + 1 : self._at + 2]
            if not following or following in "123456789k":
                raise self._invalid("back references and trailing backslashes are not supported")
            return self._at + 2
        if char != "[":
            return self._at + 1
        at = self._at + 1
        at += self._pattern[at : at + 1] == "^"
        if self._pattern[at : at + 1] == "]":  # dialects disagree on where such a class ends
            raise self._invalid("a character class starts with ]")
        while at < len(self._pattern) and self._pattern[at] != "]":
            at += 2 if self._pattern[at] == "\\" else 1
        if at >= len(self._pattern):
            raise self._invalid("a character class is not closed")
        return at + 1

    def _open(self) -> None:
        self._end_atom()
        head = _GROUP.match(self._pattern, self._at)
        assert head is not None
        if self._pattern[head.end() : head.end() + 1] == "?":
            raise self._invalid("look-around and inline flags are not supported")
        if len(self._groups) > GROUPS_DEEP_MAX:
            raise self._invalid("groups are nested too deep")
        self._groups.append((0, False))
        self._at = head.end()

    def _close(self) -> None:
        self._end_atom()
        if len(self._groups) == 1:
            raise self._invalid("a group is not open")
        states, unbounded = self._groups.pop()
        self._atom = (max(states, 1), unbounded)
        self._at += 1

    def _quantify(self, char: str) -> None:
        if self._atom is None:
            raise self._invalid("nothing to repeat")
        low, high, self._at = self._quantifier(char)
        states, unbounded = self._atom
        if unbounded and (high is None or high > 1):
            raise self._invalid("a repetition inside a repetition")
        self._end_atom((states * max(low, high or 1, 1), unbounded or high is None))
        # A lazy quantifier says the same to an automaton; after any other mark there is nothing left to
        # repeat.
        self._at += self._pattern[self._at : self._at + 1] == "?"

    def _quantifier(self, char: str) -> tuple[int, int | None, int]:
        """Least, most (None: unbounded) and the position after it."""
        if char != "{":
            return (int(char == "+"), 1 if char == "?" else None, self._at + 1)
        counted = _COUNTED.match(self._pattern, self._at)
        if counted is None:
            raise self._invalid("a counted repetition is not closed")
        low = int(counted[1])
        high = low if counted[2] is None else int(counted[3]) if counted[3] else None
        if high is not None and high < low:
            raise self._invalid("a counted repetition runs backwards")
        return (low, high, counted.end())

    def _end_atom(self, atom: tuple[int, bool] | None = None) -> None:
        """Add the atom to its group: after this nothing can repeat it."""
        atom = atom or self._atom
        self._atom = None
        if atom is None:
            return
        states, unbounded = self._groups[-1]
        states += atom[0]
        if states > REGEX_STATES_MAX:
            raise self._invalid("it repeats too much")
        self._groups[-1] = (states, unbounded or atom[1])

    def _invalid(self, reason: str) -> InvalidRequest:
        return InvalidRequest(
            f"Invalid regular expression in '{self._param}': {reason}.", self._param, "invalid_regex"
        )
