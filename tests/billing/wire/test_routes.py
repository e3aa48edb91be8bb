"""What everybody may know of the routes."""

import pytest

from billing.wire.routes import (
    OFFERED_ROUTES,
    POOLING_ROUTES,
    ROUTE_FACTS,
    TEXT_ROUTES,
    Route,
    generates,
    smallest_request,
)


def test_a_model_offers_only_what_is_not_another_routes_share() -> None:
    pooled = ["embeddings", "rerank", "score"]
    assert list(OFFERED_ROUTES) == ["chat", "completions", "responses", "messages", *pooled, "tokenize"]
    assert list(POOLING_ROUTES) == [*pooled, "tokenize"]
    assert list(TEXT_ROUTES) == ["chat", "completions", "responses", "messages", "tokenize"]


@pytest.mark.parametrize(
    ("offered", "writes"),
    [
        (TEXT_ROUTES, True),
        (("embeddings",), False),
        (("embeddings", "tokenize"), False),
        (("embeddings", "chat"), True),
        (("a-route-of-tomorrow",), True),
    ],
)
def test_a_model_writes_text_where_one_of_its_routes_does(offered: tuple[str, ...], writes: bool) -> None:
    assert generates(offered) is writes


@pytest.mark.parametrize(
    ("offered", "route"),
    [
        ((), Route.COMPLETIONS),
        (("chat",), Route.COMPLETIONS),
        (("tokenize",), Route.COMPLETIONS),
        (("embeddings",), Route.EMBEDDINGS),
        (("embeddings", "tokenize"), Route.EMBEDDINGS),
        (("score", "rerank"), Route.RERANK),
        (("score",), Route.SCORE),
        (OFFERED_ROUTES, Route.COMPLETIONS),
    ],
)
def test_an_engine_shows_that_it_works_on_a_route_that_its_model_offers(
    offered: tuple[str, ...], route: Route
) -> None:
    assert smallest_request(offered) is ROUTE_FACTS[route]
    assert smallest_request(offered).smallest
