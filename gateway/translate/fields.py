"""Which parameters of a checked request the other dialect can say. It knows names and values, no dialect."""

from collections.abc import Mapping
from typing import Any

from gateway.errors import UnsupportedParameter


def cannot(param: str, reason: str) -> UnsupportedParameter:
    """The refusal of a parameter. `reason` goes on after "The provider of this model"."""
    return UnsupportedParameter(param, f"The provider of this model {reason}.")


def check_names(body: Mapping[str, Any], known: frozenset[str], without_effect: Mapping[str, Any]) -> None:
    """Refuse every parameter that is not `known`, unless it has the value that is `without_effect`. Null is
    the same as absent.
    """
    for name, value in body.items():
        if name in known or value is None:
            continue
        if name not in without_effect or value != without_effect[name]:
            raise cannot(name, "has nothing like it: leave it out")
