"""Prepaid tenants: what their credits can pay, as a budget that stops."""

import json
from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import Engine, select

from billing.catalogue import budgets
from billing.catalogue.budget_periods import Per
from billing.invoices import prepaid
from billing.invoices.lines import Terms
from billing.invoices.terms import set_terms
from billing.ledger.budget_spent import add_spent
from billing.ledger.entries import ReceivedEvent, record_events
from billing.schema.budgets import budget
from tests.billing.events import event
from tests.billing.invoices.test_close import HOUR_MS, OCTOBER, Books


class Shop(Books):
    """A tenant that is prepaid, 10 % tax; each request costs 2 USD."""

    def use(self, ended_ms: int, *_: object, **__: object) -> None:
        self.numbers += 1
        made = event(
            f"req_{self.numbers}", (1_000_000, 0, 500_000), started_ms=ended_ms - 10, ended_ms=ended_ms,
            tenant=self.tenant.tenant_id,
        )  # fmt: skip
        recorded = record_events(self.connection, [ReceivedEvent.read(made.to_json())])
        add_spent(self.connection, [self.tenant.tenant_id], recorded.events)

    def left(self) -> tuple[str, str]:
        """What can be paid, and what of it is spent."""
        (found,) = budgets.of_tenants(self.connection, [self.tenant.tenant_id])[self.tenant.tenant_id]
        assert found.per is Per.PREPAID
        return str(found.limit), str(found.spent)

    def renew(self, now_ms: int) -> None:
        prepaid.renew(self.connection, self.tenant.tenant_id, now_ms)


@pytest.fixture
def shop(database: Engine, raw_redis: redis.Redis) -> Iterator[Shop]:
    with database.begin() as connection:
        made = Shop(connection, raw_redis)
        set_terms(connection, made.tenant.tenant_id, Terms(tax_basis_points=1000), 0)
        prepaid.set_prepaid(connection, made.tenant.tenant_id, True, OCTOBER)
        yield made


def test_credits_less_tax_are_what_can_be_spent_until_the_next_invoice(shop: Shop) -> None:
    assert shop.left() == ("0.00", "0.00")
    shop.grant("22", OCTOBER)
    shop.renew(OCTOBER)
    shop.use(OCTOBER + 5)
    assert shop.left() == ("20.00", "2.00")
    shop.close("2023-10")  # takes 2.20 of the credit
    assert shop.left() == ("18.00", "0.00")
    shop.use(OCTOBER + 6)  # late: on no invoice yet
    assert shop.left() == ("18.00", "2.00")
    shop.renew(OCTOBER)
    assert shop.left() == ("18.00", "2.00")
    prepaid.set_prepaid(shop.connection, shop.tenant.tenant_id, False, OCTOBER)
    assert budgets.of_tenants(shop.connection, [shop.tenant.tenant_id]) == {}


def test_an_expired_credit_still_pays_for_what_was_used_before(shop: Shop) -> None:
    shop.grant("11", OCTOBER, OCTOBER + HOUR_MS)
    shop.grant("5.50", OCTOBER)
    shop.renew(OCTOBER)
    shop.use(OCTOBER + 5)
    assert shop.left() == ("15.00", "2.00")
    until = shop.connection.execute(select(budget.c.until_ms)).scalar_one()
    assert until == OCTOBER + HOUR_MS
    prepaid.renew_expired(shop.connection, OCTOBER + HOUR_MS)  # by PostgreSQL's clock it is long over
    assert shop.left() == ("7.00", "2.00")
    assert shop.connection.execute(select(budget.c.until_ms)).scalar_one() is None
    # The invoice leaves what was promised: the credit that had expired pays the tax on it, too.
    assert json.loads(shop.close("2023-10").document)["credits"][0]["amount"] == "2.20"
    assert shop.left() == ("5.00", "0.00")
