"""Values out of YAML's nodes, each with its line. It knows no noun.

Nodes are read instead of Python values, because a node has its line, and its digits as they were written: a
price of 0.10 never becomes a float.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import yaml

_BYTES_MAX: Final = 1 << 20
_TAG: Final = "tag:yaml.org,2002:"
_PLAIN: Final = {_TAG + name for name in ("str", "int", "float")}
_DECIMAL: Final = re.compile(r"[0-9]{1,24}(\.[0-9]{1,24})?", re.ASCII)
_WHOLE: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the file, for people."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


class DocumentError(Exception):
    """What is wrong with the file, and where."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(f"{place}: {message}")


@dataclass(frozen=True, slots=True)
class Value:
    """A node and its place."""

    node: yaml.Node
    path: Path

    @property
    def place(self) -> Place:
        return Place(self.path, self.node.start_mark.line + 1)

    def wrong(self, message: str) -> DocumentError:
        return DocumentError(self.place, message)


Reader = Callable[[Value], Any]


def parse(path: Path) -> Value | None:
    """The one document of a file; None for an empty one. Raises DocumentError."""
    try:
        with path.open("rb") as file:
            raw = file.read(_BYTES_MAX + 1)
        text = raw.decode("utf-8")
    except OSError as exc:
        raise DocumentError(Place(path, 1), f"cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise DocumentError(Place(path, raw[: exc.start].count(b"\n") + 1), "is not UTF-8") from exc
    if len(raw) > _BYTES_MAX:
        raise DocumentError(Place(path, 1), f"has more than {_BYTES_MAX:,} bytes")
    try:
        for event in yaml.parse(text, yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1
                raise DocumentError(Place(path, line), "anchors and aliases are not taken: write it out")
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = 1 if mark is None else mark.line + 1
        raise DocumentError(Place(path, line), f"is not YAML: {exc.problem or exc.context}") from exc
    except yaml.YAMLError as exc:
        raise DocumentError(Place(path, 1), f"is not YAML: {exc}") from exc
    except RecursionError as exc:
        raise DocumentError(Place(path, 1), "is nested too deeply") from exc
    return None if node is None else Value(node, path)


def entries(value: Value, what: str) -> Iterator[tuple[str, Value, Value]]:
    """Name, its node, and what belongs to it. Raises DocumentError for a name that comes twice."""
    if not isinstance(value.node, yaml.MappingNode):
        raise value.wrong(f"{what} is a mapping: `name: …` on lines of their own")
    seen: dict[str, int] = {}
    for key_node, node in value.node.value:
        key = Value(key_node, value.path)
        try:
            name = text(key)
        except _Unfit as exc:
            raise key.wrong(f"a name in {what} is {exc}") from exc
        if name in seen:
            raise key.wrong(f"{name!r} is there twice, the first time in line {seen[name]}")
        seen[name] = key.place.line
        yield name, key, Value(node, value.path)


def fields(value: Value, what: str, readers: Mapping[str, Reader]) -> tuple[dict[str, Any], dict[str, Place]]:
    """What is given, by its readers, and where. Raises DocumentError for an unknown field."""
    found: dict[str, Any] = {}
    places: dict[str, Place] = {}
    for name, key, given in entries(value, what):
        if name not in readers:
            raise key.wrong(f"{what} has no field {name!r}; it has: {', '.join(readers)}")
        try:
            found[name] = readers[name](given)
        except _Unfit as exc:
            raise given.wrong(f"{name} of {what} is {exc}") from exc
        places[name] = key.place
    return found, places


class _Unfit(Exception):
    """What a value should be."""


def text(value: Value) -> str:
    """Plain text; a number is taken as it was written."""
    node = value.node
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN or not node.value:
        raise _Unfit("a text; write it in quotes if it looks like something else")
    return str(node.value)


def whole(value: Value) -> int:
    """A count."""
    node = value.node
    if (
        not isinstance(node, yaml.ScalarNode)
        or node.tag != _TAG + "int"
        or _WHOLE.fullmatch(node.value) is None
    ):
        raise _Unfit("a whole number, such as 8")
    return int(node.value)


def decimal(value: Value) -> str:
    """A decimal in its one spelling: `0.1` for 0.10."""
    node = value.node
    if (
        not isinstance(node, yaml.ScalarNode)
        or node.tag not in _PLAIN
        or _DECIMAL.fullmatch(node.value) is None
    ):
        raise _Unfit("a decimal, such as 0.15")
    return spelled(node.value)


def spelled(number: str) -> str:
    """A decimal in its one spelling."""
    return f"{Decimal(number).normalize():f}"


def part(value: Value) -> str:
    """A part of one: `10%` or 0.1."""
    node = value.node
    raw = node.value if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN else ""
    number = raw.removesuffix("%")
    if _DECIMAL.fullmatch(number) is None:
        raise _Unfit("a part, such as 10% or 0.1")
    return spelled(str(Decimal(number) / (100 if raw.endswith("%") else 1)))


def yes_or_no(value: Value) -> bool:
    """`true` or `false`."""
    node = value.node
    if not isinstance(node, yaml.ScalarNode) or node.tag != _TAG + "bool":
        raise _Unfit("true or false")
    return str(node.value).lower() in {"true", "yes", "on"}


def moment_ms(value: Value) -> int:
    """A date or RFC 3339, in UTC unless it says otherwise."""
    node = value.node
    try:
        if not isinstance(node, yaml.ScalarNode):
            raise ValueError
        moment = datetime.fromisoformat(node.value)
    except ValueError:
        raise _Unfit("a moment, such as 2027-01-31 or 2027-01-31T12:00:00Z") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def one_of(*words: str) -> Reader:
    """One of these words."""

    def read(value: Value) -> str:
        given = text(value)
        if given not in words:
            raise _Unfit(f"one of {', '.join(words)}")
        return given

    return read


def many(reader: Reader) -> Reader:
    """A list."""

    def read(value: Value) -> tuple[Any, ...]:
        if not isinstance(value.node, yaml.SequenceNode):
            raise _Unfit("a list: [one, two]")
        return tuple(reader(Value(node, value.path)) for node in value.node.value)

    return read


def either(first: Reader, second: Reader) -> Reader:
    """A list is read by the second reader."""

    def read(value: Value) -> Any:
        return (second if isinstance(value.node, yaml.SequenceNode) else first)(value)

    return read


def counts(what: str) -> Reader:
    """Whole numbers by name."""

    def read(value: Value) -> dict[str, int]:
        return {name: whole(given) for name, _, given in entries(value, what)}

    return read


def inner(what: str, readers: Mapping[str, Reader]) -> Reader:
    """A mapping of its own."""

    def read(value: Value) -> dict[str, Any]:
        return fields(value, what, readers)[0]

    return read
