"""Checkers of single values, and how members that no engine gets are removed. It knows no route.

A checker takes a parameter's path and value. It raises InvalidRequest with the path, `Dropped` if the value
is fine but goes to no engine, or `Replaced` if an engine is to get another value. The function that holds the
member (`check_fields`, `check_members`, `check_elements`) then removes it from the body or replaces it.
Nothing is dropped anywhere else.

A member that a table does not name is dropped and noted (`gateway.protocol.ignored`), unless its name is in
`REFUSED`. Types are exact: `true`, `"3"` and `1.0` are not integers, so that no value means something else to
an engine. A checker never gets `None`: null is the same as absent.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.protocol.ignored import keep_aside, note
from gateway.protocol.refused import NEVER, REFUSED

Checker = Callable[[str, Any], None]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
NAME_CHARS_MAX = 64


class Dropped(Exception):
    """Remove this member from the body. `named`: name it to the caller, because what it asked for is not
    done. `kept`: remember it, because providers get it.
    """

    def __init__(self, *, named: bool, kept: bool = False) -> None:
        self.named = named
        self.kept = kept


class Replaced(Exception):
    """Replace this member by `value`."""

    def __init__(self, value: Any) -> None:
        self.value = value


def check_fields(body: dict[str, Any], fields: Mapping[str, Checker]) -> None:
    """Check every top-level parameter with its checker in `fields`. A parameter that `fields` does not name
    is dropped, unless it is to be refused.
    """
    dropped: list[str] = []
    for name, value in body.items():
        checker = fields.get(name)
        if checker is None:
            _check_unknown(name, value)
            dropped.append(name)
        elif value is not None:
            try:
                checker(name, value)
            except Dropped as drop:
                if drop.named:
                    note(name)
                if drop.kept:
                    keep_aside(body, name, value)
                dropped.append(name)
            except Replaced as other:
                body[name] = other.value
    for name in dropped:
        del body[name]


def check_members(
    param: str, value: Any, fields: Mapping[str, Checker], required: Collection[str] = ()
) -> None:
    """Do the same for an object inside the body; `required` members must be present."""
    members = mapping(param, value)
    dropped: list[str] = []
    for name, member in members.items():
        checker = fields.get(name)
        if checker is None:
            if member is not None:
                note(f"{param}.{name[:NAME_CHARS_MAX]}")
            dropped.append(name)
        elif member is not None:
            try:
                checker(f"{param}.{name}", member)
            except Dropped as drop:
                if drop.named:
                    note(f"{param}.{name}")
                if drop.kept:
                    keep_aside(members, name, member)
                dropped.append(name)
            except Replaced as other:
                members[name] = other.value
    for name in dropped:
        del members[name]
    for name in required:
        if members.get(name) is None:
            raise missing(f"{param}.{name}")


def check_elements(param: str, values: list[Any], checker: Checker) -> None:
    """Check every element of a list, and remove those that the checker drops."""
    dropped: list[int] = []
    for index, member in enumerate(values):
        try:
            checker(f"{param}[{index}]", member)
        except Dropped as drop:
            if drop.named:
                note(f"{param}[{index}]")
            dropped.append(index)
        except Replaced as other:
            values[index] = other.value
    for index in reversed(dropped):
        del values[index]


def _check_unknown(name: str, value: Any) -> None:
    """Check a top-level parameter that this route's table does not name. If this returns, it is dropped."""
    if value is None:
        return
    reason = REFUSED.get(name)
    # `false`, `[]` and the like ask for nothing, so the caller would miss nothing. A parameter that could
    # reach past the tenant has no harmless value.
    if reason is not None and (value or name in NEVER):
        raise UnsupportedParameter(name, reason)
    note(name[:NAME_CHARS_MAX])


def missing(param: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def wrong_type(param: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid type for '{param}': expected {expected}.", param, "invalid_type")


def too_many(param: str, count_max: int, what: str = "entries") -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{param}': at most {count_max} {what} are allowed.", param, "array_above_max_length"
    )


def too_long(param: str, chars_max: int) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{param}': at most {chars_max} characters are allowed.", param, "string_above_max_length"
    )


def empty(param: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': it must not be empty.", param)


def mapping(param: str, value: Any) -> dict[str, Any]:
    """`value` as an object."""
    if type(value) is not dict:
        raise wrong_type(param, "an object")
    return value


def array(param: str, value: Any, count_max: int) -> list[Any]:
    """`value` as a list of at most `count_max`."""
    if type(value) is not list:
        raise wrong_type(param, "an array")
    if len(value) > count_max:
        raise too_many(param, count_max)
    return value


def integer(low: int, high: int) -> Checker:
    def check(param: str, value: Any) -> None:
        if type(value) is not int:
            raise wrong_type(param, "an integer")
        if not low <= value <= high:
            raise InvalidRequest(f"Invalid '{param}': must be between {low} and {high}.", param)

    return check


def number(low: float, high: float, *, above_low: bool = False) -> Checker:
    """`above_low`: `low` itself is not allowed."""

    def check(param: str, value: Any) -> None:
        if type(value) is not float and type(value) is not int:
            raise wrong_type(param, "a number")
        if not low <= value <= high or (above_low and value == low):
            bounds = f"above {low} and at most {high}" if above_low else f"between {low} and {high}"
            raise InvalidRequest(f"Invalid '{param}': must be {bounds}.", param)

    return check


def boolean(param: str, value: Any) -> None:
    if type(value) is not bool:
        raise wrong_type(param, "a boolean")


def string(chars_max: int | None = None, *, may_be_empty: bool = True) -> Checker:
    """Without `chars_max` the limit on the body is the cap."""

    def check(param: str, value: Any) -> None:
        if type(value) is not str:
            raise wrong_type(param, "a string")
        if chars_max is not None and len(value) > chars_max:
            raise too_long(param, chars_max)
        if not may_be_empty and not value:
            raise empty(param)

    return check


def one_of(*allowed: str) -> Checker:
    def check(param: str, value: Any) -> None:
        if type(value) is not str:
            raise wrong_type(param, "a string")
        if value not in allowed:
            raise InvalidRequest(f"Invalid '{param}': must be one of {', '.join(allowed)}.", param)

    return check


def only(allowed: Any, reason: str) -> Checker:
    """A parameter of which only the value without effect is allowed, and dropped. The type is exact: `true`
    is not 1.
    """

    def check(param: str, value: Any) -> None:
        if type(value) is not type(allowed) or value != allowed:
            raise UnsupportedParameter(param, reason)
        raise Dropped(named=False)

    return check


def refused(reason: str) -> Checker:
    """A member that its caller would miss in the answer."""

    def check(param: str, _value: Any) -> None:
        raise UnsupportedParameter(param, reason)

    return check


def hint(*without_effect: Any) -> Checker:
    """Any value is allowed and dropped. It is named to the caller, unless it is one of those that change
    nothing here.
    """

    def check(_param: str, value: Any) -> None:
        raise Dropped(named=value not in without_effect)

    return check


def unsent(checker: Checker) -> Checker:
    """Checked and not sent, because it is done elsewhere or changes nothing; so it is not named to the
    caller.
    """

    def check(param: str, value: Any) -> None:
        checker(param, value)
        raise Dropped(named=False)

    return check


def for_providers(checker: Checker) -> Checker:
    """Checked, and for providers alone: engines have no use for it."""

    def check(param: str, value: Any) -> None:
        checker(param, value)
        raise Dropped(named=False, kept=True)

    return check


def cache_mark(_param: str, value: Any) -> None:
    """A mark of Anthropic's, up to which a prompt is to be cached. Engines cache prefixes without marks."""
    raise Dropped(named=False, kept=type(value) is dict and value.get("type") == "ephemeral")


def preferred(checker: Checker) -> Checker:
    """What the checker refuses is dropped and named to the caller, as a wish that is not met."""

    def check(param: str, value: Any) -> None:
        try:
            checker(param, value)
        except InvalidRequest:
            raise Dropped(named=True) from None

    return check


def strings(count_max: int, checker: Checker) -> Checker:
    def check(param: str, value: Any) -> None:
        check_elements(param, array(param, value, count_max), checker)

    return check


def members(fields: Mapping[str, Checker], required: Collection[str] = ()) -> Checker:
    def check(param: str, value: Any) -> None:
        check_members(param, value, fields, required)

    return check


def anything(_param: str, _value: Any) -> None:
    """For values that are checked elsewhere, or bounded by the body's limits alone."""


# Meant for other services, or sent back as it was received: it means nothing to a model.
echoed = unsent(anything)
