"""Many values in a query, as one parameter: there may be more than a statement can have parameters."""

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import ARRAY, ColumnElement, Text, any_, literal
from sqlalchemy.types import TypeEngine

_TEXT: Final = Text()


def any_of(values: Iterable[Any], kind: TypeEngine[Any] = _TEXT) -> ColumnElement[Any]:
    """What a column is equal to if it is one of these; `kind` is their type."""
    return any_(literal(list(values), ARRAY(kind)))
