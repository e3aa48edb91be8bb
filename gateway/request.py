"""A checked request, between parsing and forwarding. It knows no HTTP and no Redis."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from billing.wire.routes import Dialect, Route, RouteFacts
from billing.wire.value import Value

__all__ = ["AnswerForm", "Aside", "Dialect", "ParsedRequest", "Route", "RouteSpec", "ServiceTier"]


class AnswerForm(StrEnum):
    """The form of an answer: which meter reads it, and how it is written for the caller."""

    CHAT = "chat"
    COMPLETION = "completion"
    RESPONSE = "response"
    MESSAGE = "message"
    # Made of the prompt alone (embeddings, scores): its tokens are all that the answer costs.
    POOLED = "pooled"
    # As the engine says it.
    UNREAD = "unread"
    # The tokens of a rendered prompt, of which only the number is passed on.
    RENDERED = "rendered"


class ServiceTier(StrEnum):
    """What a caller asks for in `service_tier`."""

    AUTO = "auto"
    DEFAULT = "default"
    FLEX = "flex"
    PRIORITY = "priority"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RouteSpec:
    """One route as a gateway serves it. `facts`: what all processes know of it (name, dialect, whether its
    requests cost anything, whether the model generates its answers). `parser`: its allow-list and
    caps. `prompt_param`: the parameter with the prompt; `takes_token_ids`: it may hold token ids, whose
    number is known here. `output_params`: the parameters that bound the answer, the engine's own first.
    `continued`: the parameters with which a stream can be resumed; with any other it cannot. `summary` and
    `required`: for the API's document.
    """

    facts: RouteFacts
    parser: Callable[["RouteSpec", dict[str, Any]], "ParsedRequest"]
    answer: AnswerForm
    summary: str
    prompt_param: str
    takes_token_ids: bool = False
    output_params: tuple[str, ...] = ()
    continued: frozenset[str] = frozenset()
    required: tuple[str, ...] = ()
    # Of `facts`: each request reads them ten times.
    name: Route = field(init=False)
    dialect: Dialect = field(init=False)
    metered: bool = field(init=False)
    generates: bool = field(init=False)

    def __post_init__(self) -> None:
        for fact in ("name", "dialect", "metered", "generates"):
            object.__setattr__(self, fact, getattr(self.facts, fact))


class Aside(NamedTuple):
    """A member that no engine gets and a provider does. `holder`: the object in the body that it was in."""

    holder: dict[str, Any]
    name: str
    value: Any


class ParsedRequest(Value, frozen=True, kw_only=True):
    """A request that has passed the allow-list and all caps.

    `body` is the caller's JSON object without what was dropped; `ignored` names that, and `aside` has what is
    for providers (`gateway.protocol.ignored`). `samples` = n × `prompts`, which is how many prompts there are
    (1 except on completions and pooled answers). `input_tokens_estimate` is for the reservation only, the
    engine's count replaces it. `max_output_tokens` is per sample, None where the caller set none.
    `wants_usage` and `wants_continuous_usage` are what it asked for in `stream_options`; other usage is
    removed from the stream. `service_tier` has OpenAI's names on every route. `begins_with`: what the answer
    must begin with, of a stream that is resumed.
    """

    route: RouteSpec
    model: str
    stream: bool
    samples: int
    prompts: int
    input_tokens_estimate: int
    max_output_tokens: int | None
    wants_usage: bool
    wants_continuous_usage: bool
    body: dict[str, Any]
    service_tier: ServiceTier = ServiceTier.AUTO
    begins_with: str = ""
    ignored: tuple[str, ...] = ()
    aside: tuple[Aside, ...] = ()
