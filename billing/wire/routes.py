"""The inference routes: their names, their paths, and the facts that all processes may know of them.

A gateway adds how it reads and answers a route (`gateway/routes.py`). Pure; it loads no SQL.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Dialect(StrEnum):
    """The dialect of a route's callers. It decides the form of errors and of streams."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class Route(StrEnum):
    """An inference route, by the name in a model's entry and in events."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    SCORE = "score"
    COUNT_TOKENS = "count_tokens"
    TOKENIZE = "tokenize"
    INPUT_TOKENS = "input_tokens"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RouteFacts:
    """One route. `offered_as`: the route that a model's entry must list for this one to be served. A route
    that is not `metered` costs nothing; one that `generates` produces tokens. `smallest`: together with a
    model's name, the smallest request by which an engine shows that it works.
    """

    name: Route
    path: str
    offered_as: Route
    dialect: Dialect = Dialect.OPENAI
    metered: bool = True
    generates: bool = True
    smallest: Mapping[str, Any] | None = None


_ALL: Final = (
    RouteFacts(name=Route.CHAT, path="/v1/chat/completions", offered_as=Route.CHAT),
    RouteFacts(
        name=Route.COMPLETIONS,
        path="/v1/completions",
        offered_as=Route.COMPLETIONS,
        smallest={"prompt": "1", "max_tokens": 1, "temperature": 0, "ignore_eos": True},
    ),
    RouteFacts(name=Route.RESPONSES, path="/v1/responses", offered_as=Route.RESPONSES),
    RouteFacts(
        name=Route.MESSAGES, path="/v1/messages", offered_as=Route.MESSAGES, dialect=Dialect.ANTHROPIC
    ),
    RouteFacts(
        name=Route.EMBEDDINGS,
        path="/v1/embeddings",
        offered_as=Route.EMBEDDINGS,
        generates=False,
        smallest={"input": "1"},
    ),
    RouteFacts(
        name=Route.RERANK,
        path="/v1/rerank",
        offered_as=Route.RERANK,
        generates=False,
        smallest={"query": "1", "documents": ["1"]},
    ),
    RouteFacts(
        name=Route.SCORE,
        path="/v1/score",
        offered_as=Route.SCORE,
        generates=False,
        smallest={"text_1": "1", "text_2": "1"},
    ),
    RouteFacts(
        name=Route.COUNT_TOKENS,
        path="/v1/messages/count_tokens",
        offered_as=Route.MESSAGES,
        dialect=Dialect.ANTHROPIC,
        metered=False,
        generates=False,
    ),
    RouteFacts(
        name=Route.TOKENIZE, path="/tokenize", offered_as=Route.TOKENIZE, metered=False, generates=False
    ),
    RouteFacts(
        name=Route.INPUT_TOKENS,
        path="/v1/responses/input_tokens",
        offered_as=Route.RESPONSES,
        metered=False,
        generates=False,
    ),
)
ROUTE_FACTS: Final[Mapping[Route, RouteFacts]] = {facts.name: facts for facts in _ALL}
# The routes that a model's entry may list. Those of an engine that generates: a model offers them by default.
# Those of an engine that pools: it makes its answers of the prompt alone.
OFFERED_ROUTES: Final = tuple(facts.name.value for facts in _ALL if facts.offered_as is facts.name)
TEXT_ROUTES: Final = tuple(
    facts.name.value
    for facts in _ALL
    if facts.offered_as is facts.name and (facts.generates or not facts.metered)
)
POOLING_ROUTES: Final = tuple(
    facts.name.value for facts in _ALL if facts.offered_as is facts.name and not facts.generates
)


_POOLING: Final = "/pooling"


def pooling_pool(pool: str) -> str:
    """The pool of the instances that pool, of a model that also generates."""
    return f"{pool}{_POOLING}"


def unpooled(pool: str) -> str:
    """The pool of that model."""
    return pool.removesuffix(_POOLING)


def generates(offered: Collection[str]) -> bool:
    """Whether a model with these routes generates text. An unknown route belongs to another version."""
    return any(name not in OFFERED_ROUTES or ROUTE_FACTS[Route(name)].generates for name in offered)


def smallest_request(offered: Collection[str]) -> RouteFacts:
    """The route whose smallest request shows that an engine of a model with these routes works."""
    known = [ROUTE_FACTS[Route(name)] for name in OFFERED_ROUTES if name in offered]
    metered = [facts for facts in known if facts.metered]
    if not metered or generates(offered):
        return ROUTE_FACTS[Route.COMPLETIONS]
    return next(facts for facts in metered if facts.smallest is not None)


def dialect_of_path(path: str) -> Dialect:
    """The dialect of an error if only the path is known: that of the route with whose path it begins."""
    spoken = (facts.dialect for facts in _ALL if path.startswith(facts.path))
    return next(spoken, Dialect.OPENAI)
