"""Usage reports: the periods add up to the whole, amounts are the ledger's, and what has no amount is told
apart.
"""

from typing import Any

import pytest
from sqlalchemy import Engine

from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import set_price
from billing.ledger.entries import ReceivedEvent, record_events
from billing.ledger.usage_report import parse_dimensions, report_usage
from billing.wire.dimensions import Dimension
from billing.wire.ending import Ending
from billing.wire.usage_event import UsageEvent
from tests.billing.events import event

DAY_MS = 86_400_000
MIDNIGHT_MS = 1_700_006_400_000  # 2023-11-15T00:00:00Z


def record(database: Engine, *events: UsageEvent) -> None:
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        record_events(connection, [ReceivedEvent.read(item.to_json()) for item in events])


def test_usage_of_a_tenant_by_model_and_hour(database: Engine) -> None:
    record(
        database,
        event("a", (10, 4, 5), ended_ms=MIDNIGHT_MS + 1),
        event("b", (10, 0, 5), ended_ms=MIDNIGHT_MS + 3_600_000),
        event("c", (1, 0, 1), Ending.ENGINE_DIED, ended_ms=MIDNIGHT_MS + 3_600_001),
        event("d", (1, 0, 1), anomaly="usage_missing", ended_ms=MIDNIGHT_MS + 3_600_001),
        event("e", (7, 0, 1), model="m2", ended_ms=MIDNIGHT_MS),
        event("f", (99, 0, 99), tenant="other", ended_ms=MIDNIGHT_MS),
    )
    with database.connect() as connection:
        report = report_usage(connection, tenant="ten_a", by=[Dimension.MODEL, Dimension.HOUR])
    assert report.to_json() == {
        "tenant": "ten_a", "by": ["model", "hour"], "from": None, "until": None, "currency": "USD",
        "lines": [
            line("m1", "2023-11-15T00:00:00Z", 1, (10, 4, 5), amount="0.000018"),
            line("m1", "2023-11-15T01:00:00Z", 3, (10, 0, 5), absorbed=(2, 2), quarantined=1,
            amount="0.00002"),
            line("m2", "2023-11-15T00:00:00Z", 1, (7, 0, 1), unpriced=(1, 8), amount="0.00"),
        ],
        "total": line(None, None, 5, (27, 4, 11), absorbed=(2, 2), quarantined=1, unpriced=(1, 8),
        amount="0.000038"),
        # 16 + 2 + 20 millionths are the amount above.
        "items": [
            item("m1", 1, "uncached_input", 16, "1.00", "0.000016"), item("m1", 1, "cached_input", 4, "0.50",
            "0.000002"),
            item("m1", 1, "output", 10, "2.00", "0.00002"), item("m2", None, "uncached_input", 7, None, None),
            item("m2", None, "output", 1, None, None),
        ],
        "cost_items": [],
    }  # fmt: skip


def item(
    model: str, price_id: int | None, kind: str, tokens: int, price: str | None, amount: str | None
) -> dict[str, Any]:
    return {
        "model": model,
        "price_id": price_id,
        "kind": kind,
        "tokens": tokens,
        "price": price,
        "amount": amount,
    }


def line(
    model: str | None, hour: str | None, requests: int, tokens: tuple[int, int, int], *, amount: str,
    absorbed: tuple[int, int] = (0, 0), unpriced: tuple[int, int] = (0, 0), quarantined: int = 0,
) -> dict[str, object]:  # fmt: skip
    group = {"model": model, "hour": hour} if model else {}
    return group | {
        "requests": requests,
        "tokens": dict(zip(("prompt", "cached", "output"), tokens, strict=True)) | {"written": 0},
        "absorbed": {"prompt": absorbed[0], "output": absorbed[1]},
        "unpriced": {"requests": unpriced[0], "tokens": unpriced[1]},
        "quarantined": {"requests": quarantined},
        "uncosted": {"requests": 0},
        "untold": {"requests": 0},
        "amount": amount,
        "cost": "0.00",
        "cost_makers": "0.00",
        "margin": amount,
    }


def test_a_request_that_was_resumed_counts_once_with_the_tokens_of_all_its_parts(database: Engine) -> None:
    record(database, event("req_ab"), event("req_ab-2"), event("req_ab-3"), event("req_cd"))
    with database.connect() as connection:
        total = report_usage(connection, tenant="ten_a").total
    assert (total.figures["requests"], total.figures["tokens.output"]) == (2, 20)


def test_each_request_is_in_exactly_one_period_and_the_periods_add_up(database: Engine) -> None:
    edges = [MIDNIGHT_MS - 1, MIDNIGHT_MS, MIDNIGHT_MS + DAY_MS - 1, MIDNIGHT_MS + DAY_MS]
    record(database, *(event(f"r{number}", ended_ms=edge) for number, edge in enumerate(edges)))
    with database.connect() as connection:
        whole = report_usage(connection, tenant="ten_a")
        days = report_usage(connection, tenant="ten_a", by=[Dimension.DAY])
        periods = [
            report_usage(
                connection,
                tenant="ten_a",
                from_ms=MIDNIGHT_MS + n * DAY_MS,
                until_ms=MIDNIGHT_MS + (n + 1) * DAY_MS,
            )
            for n in (-1, 0, 1)
        ]
    assert [(dict(each.group), each.figures["requests"]) for each in days.lines] == [
        ({"day": "2023-11-14"}, 1), ({"day": "2023-11-15"}, 2), ({"day": "2023-11-16"}, 1),
    ]  # fmt: skip
    assert [period.total.figures["requests"] for period in periods] == [1, 2, 1]
    assert sum((period.total.amount for period in periods), ZERO) == whole.total.amount == days.total.amount
    assert whole.total.amount == Money(4 * (10 * 1_000_000 + 5 * 2_000_000))


def test_usage_groups_by_project_key_class_and_tenant(database: Engine) -> None:
    record(database, event("a"), event("b", project="prj_b", key_id="key_b", tenant="ten_b"))
    with database.connect() as connection:
        report = report_usage(
            connection, tenant=None, by=[Dimension.TENANT, Dimension.PROJECT, Dimension.KEY, Dimension.CLASS]
        )
    assert [dict(each.group) for each in report.lines] == [
        {"tenant": "ten_a", "project": "prj_a", "key": "key_a", "class": "on_demand"},
        {"tenant": "ten_b", "project": "prj_b", "key": "key_b", "class": "on_demand"},
    ]


def test_no_usage_is_an_empty_report_that_costs_nothing(database: Engine) -> None:
    with database.connect() as connection:
        report = report_usage(connection, tenant="nobody", by=[Dimension.MODEL])
        bare = report_usage(connection, tenant="nobody")
    assert report.lines == bare.lines == ()
    assert bare.total.to_json()["amount"] == "0.00"


@pytest.mark.parametrize("words", ["model,nonsense", "model,model"])
def test_a_dimension_that_is_not_one_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match=r"nonsense|model"):
        parse_dimensions(words)


def test_dimensions_are_read_in_their_order() -> None:
    assert parse_dimensions("hour, model") == (Dimension.HOUR, Dimension.MODEL)
    assert parse_dimensions("") == ()
