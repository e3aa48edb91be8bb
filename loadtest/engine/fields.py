"""Reading typed fields of a request body as vLLM's pydantic models do: lax about 3 and "3", strict about
the rest.
"""

from typing import Any

import orjson

from loadtest.engine.errors import Invalid

Body = dict[str, Any]


def parse(raw: bytes) -> Body:
    """The body as an object."""
    if not raw:
        raise Invalid("missing", "body", "Field required", None)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise Invalid(
            "json_invalid", f"body.{exc.pos}", "JSON decode error", {}, f", 'ctx': {{'error': '{exc.msg}'}}"
        ) from exc
    if not isinstance(body, dict):
        raise Invalid(
            "model_attributes_type",
            "body",
            "Input should be a valid dictionary or object to extract fields from",
            body,
        )
    return body


def integer(body: Body, name: str, default: int | None = None) -> int | None:
    """An integer or None; 1.0, true and "3" count, as they do in pydantic."""
    given = body.get(name)
    if given is None:
        return default
    if isinstance(given, int):
        return int(given)
    if isinstance(given, float) and given.is_integer():
        return int(given)
    try:
        return int(given) if isinstance(given, str) else _not_an_integer(name, given)
    except ValueError as exc:
        raise Invalid(
            "int_parsing",
            f"body.{name}",
            "Input should be a valid integer, unable to parse string as an integer",
            given,
        ) from exc


def _not_an_integer(name: str, given: object) -> int:
    raise Invalid("int_type", f"body.{name}", "Input should be a valid integer", given)


def number(body: Body, name: str, default: float) -> float:
    """A float."""
    given = body.get(name)
    if given is None:
        return default
    if isinstance(given, (int, float)):
        return float(given)
    raise Invalid("float_type", f"body.{name}", "Input should be a valid number", given)


def flag(body: Body, name: str) -> bool:
    """A boolean, absent = False."""
    given = body.get(name)
    if given is None:
        return False
    if isinstance(given, bool):
        return given
    raise Invalid("bool_type", f"body.{name}", "Input should be a valid boolean", given)


def strings(body: Body, name: str) -> list[str]:
    """One string or a list of them."""
    given = body.get(name)
    if given is None:
        return []
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        return given
    raise Invalid("list_type", f"body.{name}", "Input should be a valid list", given)


def mapping(body: Body, name: str) -> Body:
    """An object, absent = empty."""
    given = body.get(name)
    if given is None:
        return {}
    if isinstance(given, dict):
        return given
    raise Invalid("model_attributes_type", f"body.{name}", "Input should be a valid dictionary", given)


def required_list(body: Body, name: str) -> list[Any]:
    """A list that must be there."""
    if name not in body:
        raise Invalid("missing", f"body.{name}", "Field required", body)
    given = body[name]
    if not isinstance(given, list):
        raise Invalid("list_type", f"body.{name}", "Input should be a valid list", given)
    return given
