"""A model's limits without the rest of its entry."""

from typing import NamedTuple


class ModelLimits(NamedTuple):
    """Implements `gateway.protocol.limits.ModelLimits`."""

    context_tokens: int
    vocabulary_tokens: int | None
    chat_template_kwargs: frozenset[str]
    routes: frozenset[str]
