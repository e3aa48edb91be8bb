"""Checkers of single values. Each takes the parameter's path and its value, and raises InvalidRequest naming the path. Knows no route.

Types are exact: `true`, `"3"` and `1.0` are not integers, so that nothing here means something else to an engine.
`None` never gets here: null is the same as absent, see `check_fields`.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.protocol.refused import REFUSED

Checker = Callable[[str, Any], None]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
NAME_CHARS_MAX = 64


def check_fields(body: Mapping[str, Any], fields: Mapping[str, Checker]) -> None:
    """Every top-level parameter must be in the allow-list `fields` and pass its checker. A known name with null is let through: it says nothing."""
    for name, value in body.items():
        checker = fields.get(name)
        if checker is None:
            if value is None and name in REFUSED:
                continue
            raise UnsupportedParameter(name[:NAME_CHARS_MAX], REFUSED.get(name, ""))
        if value is not None:
            checker(name, value)


def check_members(param: str, value: Any, fields: Mapping[str, Checker], required: Collection[str] = ()) -> None:
    """The same for an object inside the body. Null members are absent, whatever their name: SDKs send back what they were sent."""
    members = mapping(param, value)
    for name, member in members.items():
        if member is None:
            continue
        checker = fields.get(name)
        if checker is None:
            raise UnsupportedParameter(f"{param}.{name[:NAME_CHARS_MAX]}")
        checker(f"{param}.{name}", member)
    for name in required:
        if members.get(name) is None:
            raise missing(f"{param}.{name}")


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
    """`above_low`: `low` itself is out."""

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
    """Without `chars_max` the body's own limit is the cap."""

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
    """A parameter that exists, of which only the value without effect is taken. Exact in type: `true` is not 1."""

    def check(param: str, value: Any) -> None:
        if type(value) is not type(allowed) or value != allowed:
            raise UnsupportedParameter(param, reason)

    return check


def strings(count_max: int, checker: Checker) -> Checker:
    def check(param: str, value: Any) -> None:
        for index, member in enumerate(array(param, value, count_max)):
            checker(f"{param}[{index}]", member)

    return check


def members(fields: Mapping[str, Checker], required: Collection[str] = ()) -> Checker:
    def check(param: str, value: Any) -> None:
        check_members(param, value, fields, required)

    return check


def anything(_param: str, _value: Any) -> None:
    """For what no engine sees and the body's limits bound already."""
