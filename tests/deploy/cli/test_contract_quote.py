"""`taas contract quote`, as an operator types it, through a live admin API."""

from collections.abc import Callable
from typing import Any

from tests.deploy.cli.conftest import Taas

Told = Callable[..., Any]


def test_what_does_not_fit_is_refused_with_when_and_how_much_and_quoted(taas: Taas, told: Told, shop: None):
    terms = ["--tenant", "acme", "--pool", "org/llama", "--notice-days", "7"]
    refused = taas(
        "contract",
        "sign",
        "--yes",
        *terms,
        "--units",
        "2000",
        "--from",
        "2199-01-01",
        "--until",
        "1y",
        exit_code=1,
    )
    expected = "from 2199-01-01T00:00:00Z until 2200-01-01T00:00:00Z by 200 units per second"
    assert expected in refused.stderr
    told("contract", "sign", "--yes", *terms, "--units", "1500", "--from", "2199-01-01", "--until", "1y")
    asked = [
        "contract",
        "quote",
        "--pool",
        "org/llama",
        "--units",
        "400",
        "--from",
        "2199-06-01",
        "--until",
        "90d",
    ]
    quote = told(*asked)
    assert (quote["at_most"], quote["fits"], quote["fits_from"]) == ("300", False, "2200-01-01T00:00:00Z")
    said = taas(*asked).stdout
    assert "at most 300 units per second fit" in said
    assert "they fit for as long from 2200-01-01 00:00 on" in said
    assert "100 units per second more than is free, from 2199-06-01 00:00 until 2199-08-30 00:00" in said
    never = taas(
        "contract", "quote", "--pool", "org/llama", "--units", "1800.5", "--from", "2299-01-01"
    ).stdout
    assert "0.5 units per second more than is free, from 2299-01-01 00:00 on, for good" in never
    assert "no later start fits" in never
    # Each says both: that the period is covered, and how far beyond it the rate would fit.
    begun = [*asked[:-4], "--from", "2100-01-01", "--until"]
    assert "400 fit over all of that; a longer term fits until 2199-01-01 00:00" in taas(*begun, "30d").stdout
    assert "400 fit over all of that, and no longer" in taas(*begun, "2199-01-01").stdout
    for_good = [*asked[:-6], "--units", "300", "--from", "2100-01-01"]
    said = taas(*for_good, "--until", "30d").stdout
    assert "300 fit over all of that; a longer term fits, too, even one without an end" in said
    assert "300 fit, for good" in taas(*for_good).stdout
    assert "for good" in taas("contract", "quote", "--pool", "org/llama").stdout
    held = taas("pool", "set", "org/llama", "--instances", "1", exit_code=1)
    assert "by 600 units per second" in held.stderr
    assert "1,800" in taas("pool", "show", "org/llama").stdout


def test_a_load_is_said_in_units(taas: Taas, told: Told, shop: None):
    load = ["--requests-per-minute", "60", "--input", "2000", "--cached", "50%", "--output", "300"]
    quote = told("contract", "quote", "--pool", "org/llama", *load)
    # 1000 uncached and 1000 cached at a tenth, 300 at four times, once a second.
    assert (quote["units"], quote["fits"]) == ("2300", False)
    said = taas("contract", "quote", "--pool", "org/llama", *load).stdout
    assert "that takes 2,300 units per second; a unit is the work of one uncached input token" in said
    assert "--input" in taas("contract", "quote", "--pool", "org/llama", *load[:2], exit_code=2).stderr
