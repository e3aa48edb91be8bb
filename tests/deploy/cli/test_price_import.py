"""`taas price --cost` and `taas price import`: what providers charge is proposed, shown and confirmed."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine

from billing.catalogue import instances
from billing.fleet.provider_probe import provider_facts
from tests.deploy.cli.conftest import Taas

Told = Callable[..., Any]
snapshot = pytest.importorskip("genai_prices.data_snapshot")


@pytest.fixture
def bought(told: Told, migrated_database_url: str) -> None:
    """Models at providers that the list knows, at one that it does not, and one of our own."""
    engine = create_engine(migrated_database_url)
    for model, kind, url, name in (
        ("big", "openai", "https://api.openai.com", "gpt-4.1"),
        ("wise", "anthropic", "https://api.anthropic.com", "claude-opus-4-5"),
        ("odd", "openai", "https://models.example.com", "gpt-4.1"),
        ("new", "openai", "https://api.openai.com/other", "gpt-of-tomorrow"),
    ):
        told("model", "add", model, "--context", "4096")
        with engine.begin() as connection:
            instances.add(
                connection, model, url, provider_facts(), engine=kind, engine_key="k", engine_model=name,
                instance_id=f"at-{model}", max_concurrency=2,
            )  # fmt: skip
    engine.dispose()
    told("tenant", "create", "acme")  # a change, with which the instances reach Redis, too


def listed(provider: str, name: str) -> dict[str, Decimal]:
    """What the list says, read in another way than the product's."""
    _, model = snapshot.get_snapshot().find_provider_model(name, None, provider, None)
    prices = model.get_prices(datetime.now(UTC))
    return {"input": prices.input_mtok, "cached_input": prices.cache_read_mtok, "output": prices.output_mtok}


def test_it_proposes_what_the_list_says_and_a_person_confirms(taas: Taas, told: Told, bought: None):
    refused = taas("price", "import", "genai-prices", exit_code=2)
    assert "give --yes" in refused.output
    assert "at-big" in refused.output
    assert told("price", "list", "--cost")["data"] == []
    made = taas("price", "import", "genai-prices", "--yes").stdout
    assert "2 cost prices are set" in made
    assert made.count("not in the list") == 2
    held = {row["instance"]: row for row in told("price", "list", "--cost")["data"]}
    for instance, wanted in (
        ("at-big", listed("openai", "gpt-4.1")),
        ("at-wise", listed("anthropic", "claude-opus-4-5")),
    ):
        assert {name: Decimal(held[instance][name]) for name in wanted} == wanted
    # Writing into the cache costs a quarter more there.
    assert Decimal(held["at-wise"]["cache_write"]) == Decimal(held["at-wise"]["input"]) * Decimal("1.25")
    assert "nothing would change" in taas("price", "import", "genai-prices").stdout
    odd = taas("price", "import", "genai-prices", "--model", "odd", "--provider", "openai", "--yes").stdout
    assert "1 cost prices are set" in odd


def test_it_shows_what_would_change(taas: Taas, told: Told, bought: None):
    told("price", "set", "--cost", "--model", "big", "--input", "9", "--output", "9")
    shown = taas("price", "import", "genai-prices", "--model", "big", exit_code=2).output
    assert f"9.00 → {listed('openai', 'gpt-4.1')['input']}" in shown


def test_a_cost_price_is_the_operators_and_of_a_provider(taas: Taas, told: Told, bought: None):
    told("model", "add", "own", "--context", "4096")
    one = ("price", "set", "--cost", "--input", "1", "--output", "2", "--cache-write", "1.25")
    made = told(*one, "--model", "big", "--instance", "at-big")
    assert (made["instance"], made["cache_write"], made["cached_input"]) == ("at-big", "1.25", "1.00")
    assert "no provider of 'own'" in taas(*one, "--model", "own", "--instance", "at-big", exit_code=1).output
    assert "--instance is for --cost" in taas(
        "price", "set", "--model", "big", "--input", "1", "--output", "1", "--instance", "at-big",
        exit_code=2,
    ).output  # fmt: skip
    assert told("price", "list")["data"] == []
    assert told("model", "show", "big")["for_sale_from_ms"] is None  # a cost price sells nothing
    later = told(*one, "--model", "big", "--from", "2999-01-01")
    assert told("price", "withdraw", str(later["price_id"]), "--cost")["price_id"] == later["price_id"]
    assert len(told("price", "list", "--cost", "--model", "big")["data"]) == 1
