"""The pydantic types of which the bodies of all requests are made. Unknown fields are refused.

They are strict: `true` is not 1, `"5"` is not 5, `1.0` is not 1. Texts hold no NUL, which PostgreSQL would
refuse, and no lone surrogate.
"""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from billing.catalogue.budget_periods import day_begins_ms, time_zones
from billing.catalogue.limits import ANY_MODEL
from billing.catalogue.names import NAME_CHARS_MAX, check_model_name, check_name, check_tenant_name

MS_MAX: Final = 253_402_300_799_999  # the end of the year 9999
# 10^12 units are 10^15 milliunits: exact in a Lua number, which counts up to 9·10^15.
UNITS_MAX: Final = 10**12
COUNT_MAX: Final = 10**9
MOMENT_FORMS: Final = "a moment is ISO 8601 (2026-01-31, 2026-01-31T12:00:00Z) or milliseconds since 1970"
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Body(BaseModel):
    """A JSON object whose unknown fields are an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _name_or_any(model: str) -> str:
    return model if model == ANY_MODEL else check_model_name(model)


def _moment(given: object) -> object:
    """Milliseconds are taken as they are; ISO 8601 is in UTC unless it says otherwise."""
    if not isinstance(given, str):
        return given
    if given.isascii() and given.isdecimal() and len(given) <= 18:
        return int(given)
    try:
        moment = datetime.fromisoformat(given)
        # Not as seconds in a float, which loses the milliseconds of later years.
        return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(
            milliseconds=1
        )
    except (ValueError, OverflowError) as exc:
        raise ValueError(MOMENT_FORMS) from exc


def _moment_or_day(given: object) -> object:
    """A date alone is kept: it begins at the midnight of whoever it is for."""
    if not isinstance(given, str) or _DATE.fullmatch(given) is None:
        return _moment(given)
    try:
        day = date.fromisoformat(given)
    except ValueError as exc:
        raise ValueError(MOMENT_FORMS) from exc
    if not 1970 < day.year < 9999:
        raise ValueError("a date is from 1971 to 9998")
    return day


def begins_ms(moment: int | date, time_zone: str) -> int:
    """When it is; a date begins at midnight of the time zone."""
    return day_begins_ms(moment, time_zone) if isinstance(moment, date) else moment


def _time_zone(name: str) -> str:
    if name not in time_zones():
        raise ValueError("a time zone is a name such as UTC or Europe/Berlin")
    return name


def _outside_url(url: str) -> str:
    """Over TLS, unless it stays on this machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in _LOOPBACK):
        raise ValueError("where billing sends to begins with https:// (http:// only to this machine)")
    if not parts.hostname or "@" in parts.netloc:
        raise ValueError("where billing sends to names a host, and no password")
    return url


_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_NAME_SCHEMA: Final = {"type": "string", "minLength": 1, "maxLength": NAME_CHARS_MAX}
Name = Annotated[
    str, AfterValidator(check_name), WithJsonSchema(_NAME_SCHEMA | {"pattern": r"^[A-Za-z0-9._/-]+$"})
]
# Of a model, or of an adapter of one: `BASE:ADAPTER`.
ModelName = Annotated[
    str,
    AfterValidator(check_model_name),
    WithJsonSchema(_NAME_SCHEMA | {"pattern": r"^[A-Za-z0-9._/-]+(:[A-Za-z0-9._/-]+)?$"}),
]
TenantName = Annotated[
    str,
    AfterValidator(check_tenant_name),
    WithJsonSchema(_NAME_SCHEMA | {"pattern": r"^(?!ten_|-)[A-Za-z0-9._/-]+$"}),
]
ModelOrAny = Annotated[
    str,
    AfterValidator(_name_or_any),
    WithJsonSchema(_NAME_SCHEMA | {"pattern": r"^(\*|[A-Za-z0-9._/-]+(:[A-Za-z0-9._/-]+)?)$"}),
]
TimeZone = Annotated[
    str, AfterValidator(_time_zone), WithJsonSchema({"type": "string", "examples": ["UTC", "Europe/Berlin"]})
]
Label = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^[\x21-\x7e]+$")]
# To which billing sends.
OutsideUrl = Annotated[
    Text,
    AfterValidator(_outside_url),
    WithJsonSchema({"type": "string", "format": "uri", "maxLength": 2048}),
]
# The forms of a moment on the wire.
MOMENT_SCHEMAS: Final[list[dict[str, Any]]] = [
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "date", "description": "It begins, in UTC."},
    {
        "type": "integer",
        "format": "int64",
        "minimum": 0,
        "maximum": MS_MAX,
        "description": "Milliseconds since 1970.",
    },
]
Moment = Annotated[
    int, BeforeValidator(_moment), Field(ge=0, le=MS_MAX), WithJsonSchema({"anyOf": MOMENT_SCHEMAS})
]
# As it is given; `begins_ms` knows when a date begins.
MomentOrDay = Annotated[
    Annotated[int, Field(ge=0, le=MS_MAX)] | date,
    BeforeValidator(_moment_or_day),
    WithJsonSchema(
        {
            "anyOf": [
                {**each, "description": "It begins at the tenant's midnight."}
                if each.get("format") == "date"
                else each
                for each in MOMENT_SCHEMAS
            ]
        }
    ),
]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]

TenantQuery = Annotated[Name | None, Query(description="A tenant's id or name.")]
NamePath = Annotated[Name, Path()]
ModelPath = Annotated[ModelName, Path()]
# Of a request, a contract, a reclaim.
IdPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
