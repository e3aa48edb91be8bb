"""What requests cost at providers: their own figures at the cost price that held, whoever pays for them."""

from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import Engine, select

from billing.catalogue import instances, models
from billing.catalogue.instances import EngineFacts
from billing.catalogue.models import ModelSpec
from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import ALL, COST, PriceBook, Scope, list_prices, set_price, withdraw_price
from billing.invoices import makers
from billing.ledger.check import check_ledger
from billing.ledger.entries import ReceivedEvent, record_events
from billing.ledger.maker_terms import MakerTerms
from billing.ledger.receipt import find_receipt
from billing.ledger.usage_report import UsageReport, report_usage
from billing.refusals import Conflict
from billing.schema.ledger import usage_event
from billing.wire.dimensions import Dimension
from billing.wire.ending import Ending
from billing.wire.usage_event import UsageEvent, UsageSource
from tests.billing.events import event
from tests.billing.ledger.test_usage_hours import add_up_all

START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
SAID = {"kind": "openai", "model": "gpt", "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
_numbers = count()


def bought(
    request_id: str, tokens: tuple[int, ...] = (10, 0, 5), ending: Ending = Ending.COMPLETE, **changes: Any
) -> UsageEvent:
    """An event of a request that went to a provider."""
    return replace(event(request_id, tokens, ending, **changes), provider=SAID)


def record(database: Engine, *events: UsageEvent) -> None:
    with database.begin() as connection:
        record_events(connection, [ReceivedEvent.read(each.to_json()) for each in events])


def report(database: Engine, *by: Dimension, **narrowed: Any) -> UsageReport:
    with database.connect() as connection:
        return report_usage(connection, tenant=None, by=by, **narrowed)


def test_a_days_mix_costs_what_it_does_by_hand(database: Engine) -> None:
    with database.begin() as connection:
        set_price(connection, "m1", input="3", cached_input="0.3", cache_write="4", output="15",
                  valid_from_ms=0)  # fmt: skip
        # One instance is billed by a contract of its own.
        set_price(connection, "m1", input="1", cached_input="1", output="5", valid_from_ms=0,
                  scope=Scope("i2"), of=COST)  # fmt: skip
        # The provider charges less for output from the second hour on.
        set_price(connection, "m1", input="2.5", cached_input="0.25", cache_write="3.125", output="8",
                  valid_from_ms=START_MS + HOUR_MS, of=COST)  # fmt: skip
        set_price(connection, "m1", input="2.5", cached_input="0.25", cache_write="3.125", output="10",
                  valid_from_ms=0, of=COST)  # fmt: skip
    record(
        database,
        bought("plain", (1000, 0, 100), started_ms=START_MS),
        bought("cached", (1000, 600, 100, 300), started_ms=START_MS + HOUR_MS),
        bought("elsewhere", (1000, 100, 7, 50), started_ms=START_MS, instance="i2"),
        bought("ours", (20, 0, 3), Ending.ENGINE_DIED, started_ms=START_MS),
        event("own", (1000, 0, 100), started_ms=START_MS, instance="engine"),
    )
    total = report(database).total
    # Sold: plain 1000×3 + 100×15; cached 100×3 + 600×0.3 + 300×4 + 100×15; elsewhere 850×3 + 100×0.3 + 50×4
    # + 7×15; own as plain; ours is absorbed. In millionths of a dollar.
    sold = 4500 + (300 + 180 + 1200 + 1500) + (2550 + 30 + 200 + 105) + 4500
    # Bought: plain 1000×2.5 + 100×10; cached 100×2.5 + 600×0.25 + 300×3.125 + 100×8; elsewhere 850 + 100 +
    # 50 at 1 and 7×5; ours 20×2.5 + 3×10.
    paid = 3500_000_000 + (250_000_000 + 150_000_000 + 937_500_000 + 800_000_000) + 1035_000_000 + 80_000_000
    assert total.amount == Money(sold * 10**6)
    assert total.cost == Money(paid)
    shown = total.to_json()
    assert (shown["amount"], shown["cost"], shown["margin"]) == ("0.015065", "0.0067525", "0.0083125")
    assert shown["uncosted"] == shown["untold"] == {"requests": 0}
    items = report(database).to_json()
    for part, whole in (("items", "amount"), ("cost_items", "cost")):
        assert sum((Money.parse(item["amount"]) for item in items[part]), ZERO) == Money.parse(shown[whole])
    assert {item["instance"] for item in items["cost_items"]} == {"i1", "i2"}
    with database.connect() as connection:
        assert check_ledger(connection) == []


@pytest.mark.parametrize("added_up", [False, True])
def test_what_makers_get_is_taken_off_the_margin(database: Engine, added_up: bool) -> None:
    """Of m1: a share of 12.34 %, then a price for each token; of m2 and m3 nothing yet. A token
    costs a pico-dollar.
    """
    hour_ms = START_MS // HOUR_MS * HOUR_MS
    with database.begin() as connection:
        for model in ("m1", "m2", "m3"):
            models.create(connection, ModelSpec(name=model, context_tokens=4096))
            one = {"input": "0.000001", "cached_input": "0.000001", "output": "0.000001"}
            set_price(connection, model, **one, valid_from_ms=0)
        for made in (
            MakerTerms(model="m1", maker="lab", from_ms=0, share_basis_points=1234),
            MakerTerms(model="m1", maker="lab", from_ms=hour_ms, input_picousd=3, output_picousd=5),
            MakerTerms(model="m2", maker="lab", from_ms=hour_ms + 10 * 24 * HOUR_MS, share_basis_points=9999),
        ):
            makers.set_terms(connection, made)
    record(
        database,
        *(
            event(f"{model}-{tenant}-{at_ms}", (7, 0, 4), model=model, tenant=tenant, started_ms=at_ms,
                  ended_ms=at_ms, key_id=f"of-{tenant}")
            for model in ("m1", "m2", "m3")
            for tenant in ("ten_a", "ten_b", "ten_c")
            for at_ms in (hour_ms - 2 * HOUR_MS, hour_ms - 1, hour_ms)
        ),
    )  # fmt: skip
    if added_up:
        with database.begin() as connection:
            add_up_all(connection)
    # Six times 11 × 0.1234, and three times 7 × 3 + 4 × 5.
    gets = round(6 * 11 * 0.1234) + 3 * 41
    ways = [(), *((each,) for each in Dimension), (Dimension.TENANT, Dimension.DAY, Dimension.MODEL)]
    for by in ways:
        found = report(database, *by)
        assert found.total.makers == Money(gets), by
        assert sum((line.makers for line in found.lines), ZERO) == found.total.makers
    by_model = {line.group["model"]: line for line in report(database, Dimension.MODEL).lines}
    assert [by_model[model].makers for model in ("m1", "m2", "m3")] == [Money(gets), ZERO, ZERO]
    shown = by_model["m1"].to_json()
    assert (shown["cost_makers"], shown["margin"]) == (str(Money(gets)), str(Money(99 - gets)))
    # A part of each hour, and of a tenant: a share of 11 is 1.3574.
    narrowed = {"from_ms": hour_ms - 1, "until_ms": hour_ms + 1}
    assert report(database, **narrowed).total.makers == Money(round(3 * 1.3574) + 3 * 41)
    with database.connect() as connection:
        assert report_usage(connection, tenant="ten_b").total.makers == Money(round(2 * 1.3574) + 41)


_prices = st.lists(
    st.tuples(
        st.sampled_from([None, "i1", "i2"]),
        st.integers(0, 4),
        *[st.integers(0, 10**12)] * 3,
        st.none() | st.integers(0, 10**12),
    ),
    max_size=6,
    unique_by=lambda price: price[:2],
)
_requests = st.lists(
    st.tuples(
        st.sampled_from(["i1", "i2", "i3"]),
        st.integers(0, 4 * HOUR_MS),
        st.sampled_from([Ending.COMPLETE, Ending.CLIENT_DISCONNECT, Ending.ENGINE_DIED]),
        *[st.integers(0, 10**8)] * 3,
        st.integers(1, 10**8),
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_prices, _requests)
def test_the_report_costs_each_request_by_the_price_that_held(
    database: Engine, prices: list[Any], requests: list[Any]
) -> None:
    model = f"model-{next(_numbers)}"
    rows = [
        {
            "model": model, "instance": instance, "valid_from_ms": START_MS + hour * HOUR_MS,
            "input_picousd": sent, "cached_input_picousd": cached, "output_picousd": output,
            "cache_write_picousd": written,
        }
        for instance, hour, sent, cached, output, written in prices
    ]  # fmt: skip
    events = [
        bought(
            f"{model}-{number}", (uncached + cached + written, cached, output, written), ending,
            started_ms=START_MS + at_ms, model=model, instance=instance,
        )
        for number, (instance, at_ms, ending, uncached, cached, written, output) in enumerate(requests)
    ]  # fmt: skip
    with database.begin() as connection:
        if rows:
            connection.execute(COST.prices.insert(), rows)
        book = PriceBook(list_prices(connection, model, of=COST))
    record(database, *events)
    wanted, uncosted = ZERO, 0
    for each in events:
        price = book.at(model, each.started_ms, (Scope(each.instance), ALL))
        wanted += ZERO if price is None else price.amount(each.produced)
        uncosted += price is None
    lines = {line.group["model"]: line for line in report(database, Dimension.MODEL).lines}
    if events:
        assert lines[model].cost == wanted
        assert lines[model].figures["uncosted.requests"] == uncosted


def test_what_no_provider_told_and_what_has_no_cost_price_is_counted_apart(database: Engine) -> None:
    untold = replace(
        bought("left", ending=Ending.CLIENT_DISCONNECT, anomaly="usage_missing", source=UsageSource.COUNTED),
        provider={**SAID, "usage": None},
    )
    record(database, bought("bare"), untold, event("own"))
    total = report(database).total
    assert total.cost == ZERO
    assert (total.figures["uncosted.requests"], total.figures["untold.requests"]) == (1, 1)
    with database.begin() as connection:  # a cost price of an earlier date covers what had none
        set_price(connection, "m1", input="1", cached_input="1", output="1", valid_from_ms=0, of=COST)
    later = report(database).total
    assert (later.cost, later.figures["uncosted.requests"]) == (Money(15 * 10**6), 0)


def test_a_cost_price_changes_no_past_cost(database: Engine) -> None:
    rates = {"input": "1", "cached_input": "1", "output": "1"}
    with database.begin() as connection:
        set_price(connection, "m1", **rates, valid_from_ms=START_MS, of=COST)
        for instance in (None, "i1"):
            with pytest.raises(Conflict):
                set_price(
                    connection, "m1", **rates, valid_from_ms=START_MS + 1, scope=Scope(instance), of=COST
                )
        with pytest.raises(Conflict):  # at i1 it would hold from then on, instead of the price that held
            set_price(connection, "m1", **rates, valid_from_ms=START_MS - 1, scope=Scope("i1"), of=COST)
        earlier = set_price(connection, "m1", **rates, valid_from_ms=START_MS - 1, of=COST)
        later = {"valid_from_ms": 2 * START_MS, "scope": Scope("i1"), "of": COST}
        future = set_price(connection, "m1", **rates, **later)
        again = set_price(connection, "m1", **rates, **later)
        assert again.replaces == future.price
        withdraw_price(connection, again.price.price_id, of=COST)
        assert len(list_prices(connection, of=COST)) == 2
        assert (earlier.price.scope, again.price.scope) == (ALL, Scope("i1"))
        assert list_prices(connection) == []  # no tenant pays a cost price


def test_a_receipt_keeps_what_the_provider_said(database: Engine, valkey_client: Any) -> None:
    record(database, bought("req_a", (10, 2, 5, 3)))
    with database.connect() as connection:
        receipt = find_receipt(connection, valkey_client, "req_a")
    assert receipt is not None
    assert receipt.facts["provider"] == SAID
    assert receipt.facts["billed"] == {"prompt": 10, "cached": 2, "output": 5, "written": 3}


def test_what_a_dead_gateway_had_sent_to_a_provider_is_untold(database: Engine) -> None:
    """Its crash event from before the first checkpoint names no provider."""
    facts = EngineFacts(epoch="e1", abort=False, baseline_prompt=0, baseline_generation=0, has_counters=False)
    with database.begin() as connection:
        models.create(connection, ModelSpec(name="m1", context_tokens=100, engine_model="ours"))
        for name, kind, its_name in (
            ("i1", "openai", "gpt"),
            ("i2", "anthropic", None),
            ("i3", "vllm", None),
        ):
            instances.add(
                connection,
                "m1",
                f"https://{name}",
                facts,
                engine=kind,
                engine_model=its_name,
                instance_id=name,
            )
    died = {"ending": Ending.GATEWAY_DIED, "tokens": (0, 0, 0), "source": UsageSource.UNREAD}
    record(database, *(event(f"r{name}", instance=name, **died) for name in ("i1", "i2", "i3")))
    assert report(database).total.figures["untold.requests"] == 2
    with database.connect() as connection:
        said = dict(connection.execute(select(usage_event.c.instance, usage_event.c.provider)).all())
        assert check_ledger(connection) == []
    assert said == {
        "i1": {"kind": "openai", "model": "gpt", "usage": None},
        "i2": {"kind": "anthropic", "model": "ours", "usage": None},
        "i3": None,
    }
