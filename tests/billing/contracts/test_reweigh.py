"""Other weights while contracts stand: what must be said aloud, what capacity has to cover then, and what
each contract's history keeps of it.
"""

import threading
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select, text

from billing.catalogue import models
from billing.catalogue.models import ModelChange, Weights
from billing.contracts import store
from billing.contracts.calibrations import Calibration, Measured, record
from billing.contracts.lifecycle import draft, give_notice, sign, withdraw
from billing.contracts.reweigh import change_model
from billing.refusals import Conflict, RequestRefused
from billing.schema.capacity import calibration, contract_history
from billing.schema.catalogue import model_weights
from tests.billing.contracts.selling import DAY, POOL, T0, UNIT, Shop, furnish, terms
from tests.fixtures.gateway import wait_until

# In, cached, out of a new model: 1000, 100, 4000.
OLD = Weights()


def measure(connection: Connection, weights: Weights, *, capacity: int = 1000, **said: Any) -> Calibration:
    measured = Measured(
        pool=POOL,
        model=POOL,
        weights=weights,
        capacity_mu_s=capacity * UNIT,
        sequences=16,
        tpot_target_ms=50,
        ttft_target_ms=1000,
        hardware="cpu",
        engine_version="0.32",
        error_permille=30,
        report={},
    )
    return record(connection, measured, registered=0, at_ms=T0 + DAY, **said)


def signed(connection: Connection, shop: Shop, tenant: str = "acme", units: int = 1000, **fields: Any) -> str:
    made = draft(connection, terms(shop.tenants[tenant], units, **fields), now_ms=T0)
    return sign(connection, made.contract_id, now_ms=T0).contract_id


def rows(connection: Connection) -> list[int]:
    return [
        len(connection.execute(select(table)).all())
        for table in (calibration, model_weights, contract_history)
    ]


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (Weights(1000, 100, 4401), r"output 4 → 4\.401,"), (Weights(1000, 100, 3599), r"output 4 → 3\.599,"),
        (Weights(1101, 100, 4000), r"input 1 → 1\.101,"), (Weights(1000, 111, 4000),
        r"cached 0\.1 → 0\.111,"),
        (Weights(1000, 0, 1760), r"cached 0\.1 → 0, output 4 → 1\.76,"),
    ],
)  # fmt: skip
def test_units_that_buy_something_else_are_refused_unless_that_is_said(
    connection: Connection, shop: Shop, weights: Weights, told: str
) -> None:
    signed(connection, shop, "acme", 100)
    signed(connection, shop, "bolt", 100, from_ms=T0 + 10 * DAY)
    before = rows(connection)
    with pytest.raises(
        Conflict, match=told + " and 2 contracts are signed by the old weights.*--reweigh"
    ) as refused:
        measure(connection, weights)
    assert (refused.value.code, refused.value.param) == ("reweighs", "reweigh")
    assert rows(connection) == before
    assert measure(connection, weights, reweigh=True).weights == weights


@pytest.mark.parametrize("weights", [Weights(1100, 110, 4400), Weights(900, 90, 3600), OLD])
def test_a_tenth_and_less_needs_no_word(connection: Connection, shop: Shop, weights: Weights) -> None:
    signed(connection, shop, units=100)
    assert measure(connection, weights).weights == weights


def test_what_holds_nothing_is_in_nobodys_way(connection: Connection, shop: Shop) -> None:
    draft(connection, terms(shop.tenants["acme"], 100), now_ms=T0)
    gone = draft(connection, terms(shop.tenants["bolt"], 100), now_ms=T0)
    withdraw(connection, gone.contract_id, now_ms=T0)
    signed(connection, shop, "core", 100, until_ms=T0 + DAY)  # Over, though no clock has said so yet.
    before = rows(connection)
    assert measure(connection, Weights(1000, 100, 40_000)).weights.w_out_mu == 40_000
    assert rows(connection) == [before[0] + 1, before[1] + 1, before[2]]


def test_one_that_was_given_notice_still_holds(connection: Connection, shop: Shop) -> None:
    give_notice(connection, signed(connection, shop, units=100), "tenant", now_ms=T0)
    with pytest.raises(Conflict, match="1 contract is signed"):
        measure(connection, Weights(1000, 100, 1000))


def test_what_is_signed_must_fit_at_what_it_may_be_worth(connection: Connection, shop: Shop) -> None:
    signed(connection, shop, units=1000)
    twice = Weights(1000, 100, 8000)
    with pytest.raises(
        Conflict, match=r"up to 2 times as many of the new units.* by 0\.002 units"
    ) as refused:
        record(
            connection,
            Measured(
                pool=POOL,
                model=POOL,
                weights=twice,
                capacity_mu_s=999_999,
                sequences=16,
                tpot_target_ms=50,
                ttft_target_ms=1000,
                hardware="cpu",
                engine_version="0.32",
                error_permille=30,
                report={},
            ),
            registered=0,
            reweigh=True,
            at_ms=T0,
        )
    assert refused.value.code == "capacity_short"
    assert measure(connection, twice, reweigh=True).capacity_mu_s == 1000 * UNIT
    # Cheaper: the number that is signed stays, and is what there must be.
    with pytest.raises(Conflict, match="Less was measured than before"):
        measure(connection, OLD, capacity=499, reweigh=True)
    assert measure(connection, OLD, capacity=500, reweigh=True).capacity_mu_s == 500 * UNIT


def test_what_weighed_nothing_and_now_does_is_said_and_has_no_multiple(
    connection: Connection, shop: Shop
) -> None:
    measure(connection, Weights(1000, 0, 4000))
    signed(connection, shop, units=2000)
    with pytest.raises(Conflict, match=r"cached 0 → 0\.001"):
        measure(connection, Weights(1000, 1, 4000))
    assert measure(connection, Weights(1000, 1, 4000), reweigh=True).weights.w_cached_mu == 1


def test_each_contract_remembers_which_weights_were_before_and_are_now(
    connection: Connection, shop: Shop
) -> None:
    ids = [signed(connection, shop, "acme", 100), signed(connection, shop, "bolt", 100)]
    models.create(connection, models.ModelSpec(name="other", context_tokens=100))
    measure(connection, OLD)
    measure(connection, Weights(1000, 100, 4100))
    measure(connection, Weights(1000, 100, 8200), reweigh=True)
    for contract_id in ids:
        draft_made, once_signed, first, second = store.history(connection, contract_id)
        assert (draft_made.detail, once_signed.detail) == (None, None)
        assert {first.change, second.change} == {"reweighed"}
        assert (first.at_ms, first.by) == (T0 + DAY, "operator")
        assert first.detail == {
            "model": POOL, "from": {"version": 1, "w_in_mu": 1000, "w_cached_mu": 100, "w_out_mu": 4000},
            "to": {"version": 2, "w_in_mu": 1000, "w_cached_mu": 100, "w_out_mu": 4100},
        }  # fmt: skip
        assert second.detail is not None
        assert (second.detail["from"]["version"], second.detail["to"]["version"]) == (2, 3)
        assert second.after == store.find(connection, contract_id)


def test_a_model_whose_tokens_all_weighed_nothing_can_be_weighed_again(
    connection: Connection, shop: Shop
) -> None:
    signed(connection, shop, units=2000)
    change = ModelChange(weights=Weights(0, 0, 0))
    assert change_model(connection, POOL, change, reweigh=True, by="operator", now_ms=T0).weights == Weights(
        0, 0, 0
    )
    with pytest.raises(Conflict, match=r"input 0 → 1, cached 0 → 0\.1, output 0 → 4"):
        measure(connection, OLD)
    assert measure(connection, OLD, reweigh=True).weights == OLD


def test_who_changes_weights_while_another_signs_sees_what_was_signed(database: Engine) -> None:
    with database.begin() as connection:
        shop = furnish(connection)
    outcomes: list[str] = []

    def reweigh() -> None:
        try:
            with database.begin() as other:
                change = ModelChange(weights=Weights(1000, 100, 8000))
                change_model(other, POOL, change, reweigh=False, by="operator", now_ms=T0)
            outcomes.append("done")
        except RequestRefused as refused:
            outcomes.append(refused.code)

    def waits() -> bool:
        here = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        with database.connect() as looking:
            return looking.execute(text(f"select exists ({here})")).scalar_one() is True

    changing = threading.Thread(target=reweigh)
    with database.begin() as connection:
        signed(connection, shop, units=100)
        changing.start()
        wait_until(lambda: bool(outcomes) or waits(), "the other to wait, or to be done")
    changing.join(60)
    assert outcomes == ["reweighs"]
