"""What answers are made of: types that describe values in the API's document. Each answer of a route is
checked against its model before it is sent.
"""

from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

T = TypeVar("T")


class Answer(BaseModel):
    """A JSON object that we send. Clients must ignore members that they do not know, because more may be
    added.
    """

    model_config = ConfigDict(frozen=True)


class Listing(Answer, Generic[T]):
    """A page of a list. `next`: give it as `after` to get the next page; null: this is the last page."""

    data: list[T]
    next: str | None


class Problem(Answer):
    """What was wrong. `param`: the parameter at fault. `code`: for programs."""

    message: str
    type: str
    param: str | None
    code: str


class Refusal(Answer):
    """The form of every answer that is not a success."""

    error: Problem


Ms = Annotated[
    int,
    WithJsonSchema({"type": "integer", "format": "int64", "description": "Milliseconds since 1970, in UTC."}),
]
Utc = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
# Work units per second, work units, parts of one: exact, so no floating-point number.
Decimal = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?$")]
Usd = Annotated[str, Field(description="In USD, a decimal.")]
