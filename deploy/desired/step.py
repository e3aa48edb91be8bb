"""One change, as it is shown and as it is made."""

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Literal

from deploy.desired.yaml_values import Place

_SETS: Final = ("routes", "chat_template_kwargs")

Action = Literal["create", "change", "replace", "delete"]


class Turn(IntEnum):
    """What comes first: what others need. What takes capacity away comes last."""

    MODEL = 0
    ADAPTER = 1
    POOL = 2
    PRICE = 3
    LAUNCH = 4
    INSTANCE = 5
    INSTANCE_REPLACED = 6
    COST_PRICE = 7
    INSTANCE_REMOVED = 8
    LAUNCH_REMOVED = 9
    MODEL_RETIRED = 10
    PRICE_WITHDRAWN = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the admin API. `drains`: it is repeated until no request is open there."""

    method: str
    path: tuple[str, ...]
    body: dict[str, Any] | None = None
    drains: bool = False
    key_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change. `fields`: name, before, after; None where it is not."""

    turn: Turn
    action: Action
    what: str
    name: str
    place: Place | None
    fields: list[tuple[str, Any, Any]] = field(default_factory=list)
    note: str = ""
    calls: tuple[Call, ...]


def changed(wanted: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Fields that are given and differ. Lists of names are sets."""
    return [
        (name, now[name], new)
        for name, new in wanted.items()
        if (set(now[name]) != set(new) if name in _SETS else now[name] != new)
    ]


def all_new(fields: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Fields of something new."""
    return [(name, None, value) for name, value in fields.items()]
