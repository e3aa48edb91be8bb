"""Prepaid tenants: what their credits can pay, as a budget that stops."""

import json
from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import Engine, select, text

from billing.catalogue import budget_alerts, budgets, tenants
from billing.catalogue.budget_periods import Per
from billing.catalogue.money import Money
from billing.contracts import store as contracts
from billing.invoices import credit_notes, credits, prepaid
from billing.invoices.lines import Terms
from billing.invoices.terms import set_capacity_price, set_terms
from billing.ledger.budget_spent import add_spent
from billing.ledger.entries import ReceivedEvent, record_events
from billing.page import PageRequest
from billing.schema.budgets import budget
from tests.billing.events import event
from tests.billing.invoices.test_close import DECEMBER, HOUR_MS, NOVEMBER, OCTOBER, Books
from tests.billing.ledger.test_price_scopes import OURS, sign
from tests.billing.verified import KEY


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


def test_an_alert_is_sent_again_when_a_credit_has_been_granted_since(shop: Shop) -> None:
    shop.grant("11", OCTOBER)
    shop.renew(OCTOBER)
    (found,) = budgets.of_tenants(shop.connection, [shop.tenant.tenant_id])[shop.tenant.tenant_id]
    budget_alerts.put(shop.connection, found.budget_id, 80, "http://127.0.0.1:1/")
    for number in range(4):
        shop.use(OCTOBER + number)
    ((alert, _),) = budget_alerts.due(shop.connection, OCTOBER)
    budget_alerts.sent(shop.connection, alert, found.from_ms)
    assert budget_alerts.due(shop.connection, OCTOBER) == []
    shop.grant("11", OCTOBER)
    shop.renew(OCTOBER)
    for number in range(4):
        assert budget_alerts.due(shop.connection, OCTOBER) == []
        shop.use(OCTOBER + number)
    assert len(budget_alerts.due(shop.connection, OCTOBER)) == 1


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
    assert shop.connection.execute(select(budget.c.until_ms)).scalar_one() == NOVEMBER
    # The invoice leaves what was promised: the credit that had expired pays the tax on it, too.
    assert json.loads(shop.close("2023-10").document)["credits"][0]["amount"] == "2.20"
    assert shop.left() == ("5.00", "0.00")


def test_capacity_of_the_period_is_kept_back_from_what_can_be_used(shop: Shop) -> None:
    """A unit a second from the middle of November on, at 0.01 USD an hour: 3.60 for the 360 hours until
    December begins, and 7.44 for December.
    """
    begins = NOVEMBER + 15 * 24 * HOUR_MS
    sign(shop.connection, OURS, shop.tenant.tenant_id)
    shop.connection.execute(
        text("update contract set starts_ms = :begins, ends_ms = :ends, effective_end_ms = :ends"),
        {"begins": begins, "ends": begins + 10**11},
    )
    shop.connection.execute(
        text("insert into contract_step values (:id, :from_ms, 1000)"), {"id": OURS, "from_ms": begins}
    )
    set_capacity_price(shop.connection, contracts.find(shop.connection, OURS), "0.01", 100, OCTOBER, OCTOBER)
    shop.grant("22", OCTOBER)
    shop.renew(OCTOBER)
    assert shop.left() == ("20.00", "0.00")
    shop.close("2023-10")
    shop.renew(NOVEMBER)
    assert shop.left() == ("16.40", "0.00")
    until = shop.connection.execute(select(budget.c.until_ms)).scalar_one()
    assert until == DECEMBER
    shop.use(NOVEMBER + 5)
    # December has begun, and November is on no invoice yet: both are to be paid.
    prepaid.renew_expired(shop.connection, DECEMBER)
    assert shop.left() == ("8.96", "2.00")
    made = shop.close("2023-11")
    assert (str(made.net), str(made.due)) == ("5.60", "0.00")
    shop.renew(DECEMBER)
    assert shop.left() == ("6.96", "0.00")  # 15.84 are left of 22, with tax: 14.40, less 7.44
    set_capacity_price(shop.connection, contracts.find(shop.connection, OURS), "1", 100, DECEMBER, DECEMBER)
    shop.renew(DECEMBER)
    assert shop.left() == ("0.00", "0.00")


def test_what_is_left_of_a_commitment_is_kept_back_until_it_is_on_its_invoice(shop: Shop) -> None:
    set_terms(shop.connection, shop.tenant.tenant_id, Terms(commitment=Money.parse("5")), OCTOBER)
    shop.grant("20", OCTOBER)
    shop.use(OCTOBER + 5)
    shop.close("2023-10")
    shop.renew(NOVEMBER)
    assert shop.left() == ("15.00", "0.00")
    shop.use(NOVEMBER + 5)
    assert shop.left() == ("15.00", "2.00")  # November's usage draws on its commitment
    shop.renew(DECEMBER)
    assert shop.left() == ("12.00", "2.00")
    shop.close("2023-11")
    shop.renew(DECEMBER)
    assert shop.left() == ("10.00", "0.00")


@pytest.mark.parametrize("day", [1, 15])
@pytest.mark.parametrize("used", [0, 2])
def test_a_first_commitment_is_kept_back_as_its_invoice_will_charge_it(
    shop: Shop, day: int, used: int
) -> None:
    """The tenant was made on the 20th: the invoice is of the whole period."""
    made_ms = OCTOBER + 19 * 24 * HOUR_MS
    shop.connection.execute(text("update tenant set created_ms = :at"), {"at": made_ms})
    shop.tenant = tenants.find(shop.connection, shop.tenant.tenant_id)
    terms = Terms(day=day, tax_basis_points=1000, commitment=Money.parse("31"))
    set_terms(shop.connection, shop.tenant.tenant_id, terms, 0)
    shop.grant("110", OCTOBER)
    for number in range(used):
        shop.use(made_ms + number)
    shop.renew(NOVEMBER + 20 * 24 * HOUR_MS)  # the period is over
    limit, spent = shop.left()
    made = shop.close("2023-10")
    assert str(made.net) == "31.00"
    assert Money.parse(limit) - Money.parse(spent) == Money.parse("100") - made.net


def test_what_a_credit_note_gives_back_can_be_used_again(shop: Shop) -> None:
    shop.grant("22", OCTOBER)
    shop.use(OCTOBER + 5)
    made = shop.close("2023-10")
    assert shop.left() == ("18.00", "0.00")
    credit_notes.issue(
        shop.connection, made.number, Money.parse("1.50"), "x", issuer="us", key=KEY, now_ms=NOVEMBER
    )
    assert shop.left() == ("19.50", "0.00")


def test_credits_are_listed_in_the_order_in_which_invoices_use_them(shop: Shop) -> None:
    shop.grant("1", OCTOBER)
    for days in (3, 1, 2):
        shop.grant("1", OCTOBER, OCTOBER + days * 24 * HOUR_MS)
    shop.grant("1", OCTOBER - 1)
    used = credits.of_tenant(shop.connection, shop.tenant.tenant_id)
    assert [each.expires_ms and (each.expires_ms - OCTOBER) // (24 * HOUR_MS) for each in used] == [
        None, 1, 2, 3, None,
    ]  # fmt: skip
    page, listed = credits.list_page(shop.connection, PageRequest(2), shop.tenant.tenant_id), []
    while True:
        listed += page.rows
        if page.next is None:
            break
        page = credits.list_page(shop.connection, PageRequest(2, page.next), shop.tenant.tenant_id)
    assert listed == used
