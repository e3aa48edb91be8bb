"""From a reservation to a credit note: any steps, in any order, and the money is right at each of them."""

from collections import Counter
from typing import Any

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, func, select, text

from billing.catalogue import budgets, tenants
from billing.catalogue.budget_periods import Per
from billing.catalogue.budgets import Whose
from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import set_price
from billing.cell.execute import execute
from billing.cell.scripts import budget_hold_call, settle_call
from billing.invoices import credit_notes, credits, store
from billing.invoices.books import balances, close_books, last_closed
from billing.invoices.check import check_invoices
from billing.invoices.close import close, make_draft
from billing.invoices.lines import Terms
from billing.invoices.next_period import next_period
from billing.invoices.periods import next_name, period
from billing.invoices.terms import set_terms
from billing.ledger.accounts import Account, account_balance
from billing.ledger.budget_spent import count_if_new
from billing.ledger.check import check_ledger
from billing.metrics import BillingMetrics
from billing.schema.ledger import ledger_posting, usage_event
from billing.usage.consumer import Consumer
from billing.wire import redis_keys
from billing.wire.ending import Ending
from billing.wire.tokens import Tokens
from billing.wire.usage_event import UsageEvent
from tests.billing.cell.requests import CELL, CellRequest, empty
from tests.billing.verified import KEY, assert_verified
from tests.examples import examples

DAY_MS = 86_400_000
BEGINS_MS = period("2026-01", 1, "UTC")[0]
# All of it has been: periods are closed when they are over by Redis's clock.
ENDS_MS = period("2026-10", 1, "UTC")[0]
USED = st.tuples(st.integers(0, 3_000), st.integers(1, 2_000)).map(lambda pair: Tokens(pair[0], 0, pair[1]))


class MoneyMachine(RuleBasedStateMachine):
    """One tenant, a budget in total, 7 % tax, a commitment of 3 cents. Time goes on by days; a request is
    settled when it ends, or later.
    """

    database: Engine
    client: redis.Redis
    raw: redis.Redis
    runs = 0

    def __init__(self) -> None:
        super().__init__()
        empty(self.client)
        self.client.sadd(redis_keys.CELLS, CELL)
        type(self).runs += 1
        self.now_ms = BEGINS_MS + 5 * DAY_MS
        self.number = 0
        self.open: dict[str, int] = {}
        self.ended: set[str] = set()
        self.prices: list[tuple[int, tuple[int, int]]] = []
        self.owed = Counter[str]()
        self.documents: dict[str, bytes] = {}
        with self.database.begin() as connection:
            self.tenant = tenants.create(connection, f"acme-{self.runs}")
            set_terms(
                connection,
                self.tenant.tenant_id,
                Terms(tax_basis_points=700, commitment=Money(3 * 10**10)),
                0,
            )
            whose = Whose(self.tenant.tenant_id, None, None)
            self.budget = budgets.put(connection, whose, Per.TOTAL, Money(10**18), None, self.now_ms)
            count_if_new(connection, [self.budget])
        self.model = f"m-{self.runs}"
        self.set_price(1, 2)
        self.consumer = Consumer(
            self.database, self.raw, name="one", batch=500, claim_idle_ms=0, metrics=BillingMetrics()
        )

    def request(self, request_id: str) -> CellRequest:
        return CellRequest(client=self.client, request_id=request_id, tenant=self.tenant.tenant_id)

    def as_ours(self, event: UsageEvent, started_ms: int, ended_ms: int) -> UsageEvent:
        return replace(event, model=self.model, started_ms=started_ms, ended_ms=ended_ms)

    @rule(input_price=st.integers(0, 9), output_price=st.integers(0, 9))
    def set_price(self, input_price: int, output_price: int) -> None:
        """From now on; what has started keeps its price."""
        self.now_ms += 1
        prices = {"input": f"{input_price}", "cached_input": f"{input_price}", "output": f"{output_price}"}
        with self.database.begin() as connection:
            set_price(
                connection, self.model, **prices, valid_from_ms=self.now_ms, now_ms=lambda: self.now_ms - 1
            )
        self.prices.append((self.now_ms, (input_price * 10**6, output_price * 10**6)))

    @rule(days=st.sampled_from([1, 20, 40]))
    def time_goes_on(self, days: int) -> None:
        self.now_ms = min(self.now_ms + days * DAY_MS, ENDS_MS - 1)

    @rule()
    def reserve(self) -> None:
        self.number += 1
        request_id = f"req_{self.runs}_{self.number}"
        self.request(request_id).reserve(0)
        hold = budget_hold_call(
            self.tenant.tenant_id, request_id, micro_usd=10_000, budgets=[self.budget.budget_id], cell=CELL
        )
        execute(self.client, hold)
        self.open[request_id] = self.now_ms

    @precondition(lambda self: self.open)
    @rule(data=st.data(), used=USED, ending=st.sampled_from([Ending.COMPLETE, Ending.ENGINE_DIED]))
    def settle(self, data: Any, used: Tokens, ending: Ending) -> None:
        """As the gateway does; sometimes twice."""
        request_id = data.draw(st.sampled_from(sorted(self.open)))
        request = self.request(request_id)
        started_ms = self.open[request_id]
        ended_ms = data.draw(st.sampled_from([self.now_ms, started_ms]))
        event = self.as_ours(request.event(ending, used, 0), started_ms, ended_ms)
        call = settle_call(request.keys, cost_mu=0, tokens=event.charged_tokens, event=event.to_json())
        for _ in range(data.draw(st.integers(1, 2))):
            execute(self.client, call)
        self.count(event)
        del self.open[request_id]

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def gateway_dies(self, data: Any) -> None:
        """Its lease passes, and the reaper records what its crash event says: nothing was produced."""
        request_id = data.draw(st.sampled_from(sorted(self.open)))
        request = self.request(request_id)
        request.let_lease_pass()
        request.reap()
        self.ended.add(request_id)
        del self.open[request_id]

    @rule()
    def consume(self) -> None:
        while self.consumer.consume_once():
            pass

    @rule(usd=st.integers(1, 50), days=st.none() | st.integers(1, 100))
    def grant(self, usd: int, days: int | None) -> None:
        with self.database.begin() as connection:
            expires_ms = None if days is None else self.now_ms + days * DAY_MS
            credits.grant(
                connection, self.tenant.tenant_id, Money(usd * 10**9), self.now_ms, expires_ms=expires_ms
            )

    @rule()
    def close_period(self) -> None:
        """If one is over and all its usage recorded."""
        self.consume()
        with self.database.begin() as connection:
            name = next_period(connection, self.tenant)
            if name is None or period(name, 1, "UTC")[1] > self.now_ms:
                return
            made = close(connection, self.raw, self.tenant, name, issuer="us", key=KEY, now_ms=self.now_ms)
            self.documents[made.number] = made.document

    @rule(cents=st.integers(1, 3))
    def give_back(self, cents: int) -> None:
        with self.database.begin() as connection:
            last = store.last_of(connection, self.tenant.tenant_id)
            if last is None or last.net - store.credited(connection, last.number) < Money(cents * 10**10):
                return
            note = credit_notes.issue(
                connection, last.number, Money(cents * 10**10), "x", issuer="us", key=KEY, now_ms=self.now_ms
            )
            self.documents[note.number] = note.document

    @rule()
    def close_month_of_books(self) -> None:
        self.consume()
        with self.database.begin() as connection:
            last = last_closed(connection)
            month = "2026-01" if last is None else next_name(last.month)
            if period(month, 1, "UTC")[1] <= self.now_ms:
                close_books(connection, month, now_ms=self.now_ms)

    def count(self, event: UsageEvent) -> None:
        """What it costs: tokens at the price that held when it started."""
        if event.request_id in self.ended:
            return
        self.ended.add(event.request_id)
        input_price, output_price = next(
            price for since, price in reversed(self.prices) if since <= event.started_ms
        )
        billed = event.billed
        self.owed[event.request_id] = billed.prompt * input_price + billed.output * output_price

    @invariant()
    def what_is_recorded_is_owed_to_the_pico_dollar(self) -> None:
        with self.database.connect() as connection:
            recorded = set(
                connection.execute(
                    select(usage_event.c.request_id).where(usage_event.c.tenant == self.tenant.tenant_id)
                ).scalars()
            )
            assert recorded <= self.ended
            expected = sum(self.owed[request_id] for request_id in recorded)
            spent = budgets.find(connection, self.budget.budget_id).spent
            assert spent == Money(expected)
            earned = account_balance(connection, Account.REVENUE, self.model)
            assert earned == Money(-expected)
            total = connection.execute(select(func.sum(ledger_posting.c.amount_picousd))).scalar_one()
            assert not total
            of = ledger_posting.c
            sums = select(of.account, of.holder, func.sum(of.amount_picousd)).group_by(of.account, of.holder)
            assert {(row[0], row[1], int(row[2])) for row in connection.execute(sums)} == {
                (each.account, each.holder, each.amount.picousd) for each in balances(connection)
            }
            assert self.receivable(connection) == self.on_documents(connection) + self.on_none(connection)

    def receivable(self, connection: Connection) -> Money:
        return account_balance(connection, Account.RECEIVABLE, self.tenant.tenant_id)

    def on_documents(self, connection: Connection) -> Money:
        """What is due on all of them."""
        return sum((store.find(connection, number).due for number in self.documents), ZERO)

    def on_none(self, connection: Connection) -> Money:
        """What was used and is on no document: of periods to come, and late."""
        query = text("""
            select coalesce(sum(p.amount_picousd), 0) from ledger_posting p
            join ledger_transaction t using (transaction_id) join usage_event e using (request_id)
            left join invoiced i on i.tenant_id = e.tenant
            left join late_transaction l using (transaction_id)
            where p.account = 'receivable' and e.tenant = :tenant
              and (i.until_ms is null or e.ended_ms >= i.until_ms or l.transaction_id > i.ledger_upto)
        """)
        found = connection.execute(query, {"tenant": self.tenant.tenant_id}).scalar_one()
        return Money(int(found))

    @invariant()
    def credits_are_used_expired_or_left(self) -> None:
        with self.database.connect() as connection:
            every = credits.of_tenant(connection, self.tenant.tenant_id)
            held = account_balance(connection, Account.CREDITS, self.tenant.tenant_id)
            gone = account_balance(connection, Account.EXPIRED, self.tenant.tenant_id)
            assert all(each.used <= each.amount for each in every)
            assert -held - gone == sum((each.rest for each in every), ZERO)

    @invariant()
    def what_is_held_of_the_budget_is_what_is_not_recorded(self) -> None:
        """At most: what ended and is not recorded yet is held until then."""
        key = redis_keys.budget_keys(self.tenant.tenant_id)[0]
        held = int(self.client.hget(key, f"{self.budget.budget_id}:held") or 0)
        assert held >= 0

    def teardown(self) -> None:
        """All documents are what was issued, and the audit finds nothing."""
        self.consume()
        with self.database.connect() as connection:
            for number, document in self.documents.items():
                assert store.find(connection, number).document == document
            assert check_invoices(connection) == []
            assert check_ledger(connection) == []
            assert_verified(connection, self.tenant)
            name = next_period(connection, self.tenant)
            if name is not None:
                make_draft(connection, self.tenant, name, issuer="us", now_ms=self.now_ms)


def test_any_order_of_steps_keeps_the_money_right(
    database: Engine, valkey: redis.Redis, raw_redis: redis.Redis
) -> None:
    MoneyMachine.database, MoneyMachine.client, MoneyMachine.raw = database, valkey, raw_redis
    run_state_machine_as_test(
        MoneyMachine,
        settings=settings(
            max_examples=examples(80),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
