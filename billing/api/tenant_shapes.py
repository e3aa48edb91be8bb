"""The form of a tenant's policy for the time while Redis is away."""

from typing import Annotated, Any, Literal

from pydantic import Field

from billing.api.fields import COUNT_MAX, UNITS_MAX, Body


class Refuse(Body):
    """While Redis is away, nothing is served."""

    policy: Literal["refuse"]


class LocalLease(Body):
    """While Redis is away, this many requests and work units are served, over all gateways together."""

    policy: Literal["local_lease"]
    requests: Annotated[int, Field(ge=1, le=COUNT_MAX)]
    units: Annotated[int, Field(ge=1, le=UNITS_MAX)]


def without_default(schema: dict[str, Any]) -> None:
    """Leaves the default out of a field's schema."""
    schema.pop("default", None)


RedisDown = Annotated[Refuse | LocalLease, Field(discriminator="policy")]
