"""What a checked request is, between parsing and forwarding. Knows no HTTP and no Redis."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Dialect(StrEnum):
    """Whose words a route speaks: decides the form of errors and of streams."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class Route(StrEnum):
    """An inference route, by the name that a model's entry lists and events carry."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    COUNT_TOKENS = "count_tokens"
    TOKENIZE = "tokenize"
    INPUT_TOKENS = "input_tokens"


# They make no tokens: answered beside what is metered.
UNMETERED_ROUTES = frozenset({Route.COUNT_TOKENS, Route.TOKENIZE, Route.INPUT_TOKENS})


class ServiceTier(StrEnum):
    """What a caller asks for in `service_tier`."""

    AUTO = "auto"
    DEFAULT = "default"
    FLEX = "flex"
    PRIORITY = "priority"


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request that has passed the allow-list and all caps.

    `body` is the caller's JSON object without what was dropped; `ignored` names that (`gateway.protocol.ignored`).
    `samples` = n × `prompts`, which is how many prompts there are (1 except on completions and
    embeddings). `input_tokens_estimate` is for the reservation only, the engine's count replaces it. `max_output_tokens` is per sample, None
    where the caller set none. `wants_usage` and `wants_continuous_usage` are what it asked for in `stream_options`; the rest is taken out.
    `asked` is its `service_tier`, in OpenAI's words on every route.
    """

    route: Route
    dialect: Dialect
    model: str
    stream: bool
    samples: int
    prompts: int
    input_tokens_estimate: int
    max_output_tokens: int | None
    wants_usage: bool
    wants_continuous_usage: bool
    body: dict[str, Any]
    asked: ServiceTier = ServiceTier.AUTO
    ignored: tuple[str, ...] = ()
