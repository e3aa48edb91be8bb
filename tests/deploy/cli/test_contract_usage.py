"""`taas contract usage`: a line a minute, their sum, and JSON for programs."""

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import create_engine, insert

from billing.contracts import lifecycle
from billing.schema.capacity import contract_minute
from tests.billing.contracts.selling import T0, furnish, terms

SPAN = ("--from", "2027-01-15T08:00:00Z", "--until", "2027-01-15T09:00Z")


@pytest.fixture
def contract_id(migrated_database_url: str, admin_url: str) -> str:
    """A contract of acme with two minutes of evidence."""
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        shop = furnish(connection)
        draft = lifecycle.draft(connection, terms(shop.tenants["acme"], 10), now_ms=T0)
        signed = lifecycle.sign(connection, draft.contract_id, now_ms=T0)
        connection.execute(insert(contract_minute), [
            {"contract_id": signed.contract_id, "minute_ms": T0 + minute * 60_000, "assigned_mu": 600_000,
            "used_mu": 250_500,
             "lent_mu": 0, "borrowed_mu": 1_000, "refused": 3, "cut_mu": 1_000, "missing_mu": 500,
             "limited_requests": 3 * minute, "limited_concurrency": 5 * minute}
            for minute in range(2)
        ])  # fmt: skip
    engine.dispose()
    return signed.contract_id


def cells(result: Result) -> list[list[str]]:
    return [line.split() for line in result.output.splitlines()]


def test_a_line_a_minute_and_the_total(taas: Callable[..., Result], contract_id: str) -> None:
    shown = cells(taas("contract", "usage", contract_id, *SPAN))
    assert shown[1] == [
        contract_id,
        "acme",
        "llama",
        "2027-01-15",
        "08:00",
        "600",
        "250",
        "0",
        "1",
        "3",
        "0",
        "1.5",
        "0.5",
    ]
    assert shown[3] == [
        contract_id,
        "acme",
        "llama",
        "total",
        "1,200",
        "501",
        "0",
        "2",
        "6",
        "8",
        "(requests,",
        "concurrency)",
        "3",
        "1",
    ]
    summed = cells(taas("contract", "usage", "--tenant", "acme", "--sum", *SPAN))
    assert summed[1:] == [
        [
            contract_id,
            "acme",
            "llama",
            "1,200",
            "501",
            "0",
            "2",
            "6",
            "8",
            "(requests,",
            "concurrency)",
            "3",
            "1",
        ]
    ]


def test_nothing_is_said_to_be_nothing_and_json_is_json(
    taas: Callable[..., Result], told: Callable[..., Any], contract_id: str
) -> None:
    assert "nothing was assigned" in taas("contract", "usage", "--from", "2h").output
    assert len(told("contract", "usage", *SPAN)["data"]) == 2


def test_what_is_not_there_or_no_moment_is_said(taas: Callable[..., Result], contract_id: str) -> None:
    assert "no contract 'con_x'" in taas("contract", "usage", "con_x", exit_code=1).output
    assert "no moment" in taas("contract", "usage", "--from", "yesterday", exit_code=2).output
