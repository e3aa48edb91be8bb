"""What answers are made of: types that say in the API's document what a value is. What a route answers is
checked against its model on the way out.
"""

from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

T = TypeVar("T")


class Answer(BaseModel):
    """A JSON object that we send. Clients are to ignore members that they do not know: more may come."""

    model_config = ConfigDict(frozen=True)


class Listing(Answer, Generic[T]):
    """A page of a list. `next`: give it as `after`, for the page after this one; null: this is the last."""

    data: list[T]
    next: str | None


class Problem(Answer):
    """What was wrong. `param`: with which parameter; `code`: for programs."""

    message: str
    type: str
    param: str | None
    code: str


class Refusal(Answer):
    """Every answer that is no success has this form."""

    error: Problem


Ms = Annotated[
    int,
    WithJsonSchema({"type": "integer", "format": "int64", "description": "Milliseconds since 1970, in UTC."}),
]
Utc = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
# Work units per second, work units, parts of one: exact, so no floating-point number.
Decimal = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?$")]
Usd = Annotated[str, Field(description="In USD, a decimal.")]
