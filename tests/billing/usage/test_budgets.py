"""What is spent of a budget is what the ledger says, whatever dies between the two."""

import json
from decimal import Decimal

import pytest
import redis
from sqlalchemy import Engine, text, update

from billing.catalogue import api_keys, budgets, projects, tenants
from billing.catalogue.budget_periods import Per, period_of
from billing.catalogue.budgets import Budget, Raise, Whose
from billing.catalogue.money import Money
from billing.catalogue.price_book import set_price
from billing.catalogue.projection import Projector
from billing.cell.execute import execute
from billing.cell.scripts import budget_hold_call
from billing.invoices import prepaid
from billing.ledger.backfill import Scope, backfill
from billing.ledger.budget_spent import count_if_new, recount
from billing.metrics import BillingMetrics
from billing.moments import DAY_MS, HOUR_MS
from billing.schema.budgets import budget as budget_table
from billing.schema.clock import database_now_ms
from billing.usage import held_budgets
from billing.usage.consumer import Consumer
from billing.wire import redis_keys
from billing.wire.usage_event import UsageEvent
from tests.billing.events import event

USD = 10**12
# 10 tokens of prompt and 5 of output cost 20 micro-dollars at 1 and 2 USD for a million.
COST = 20 * 10**6


class Shop:
    """A tenant with two projects, a price, a consumer, and a Redis that shows the catalogue."""

    def __init__(self, database: Engine, client: redis.Redis) -> None:
        self.database, self.client = database, client
        with database.begin() as connection:
            self.tenant = tenants.create(connection, "acme").tenant_id
            self.project = projects.create(connection, self.tenant, "search").project_id
            self.now_ms = database_now_ms(connection)
            set_price(connection, "m1", input="1", cached_input="1", output="2", valid_from_ms=0)
        self.projector = Projector(database, client)
        self.projector.rebuild()
        self.consumer = self.new_consumer()

    def new_consumer(self) -> Consumer:
        return Consumer(
            self.database, self.client, name="one", batch=500, claim_idle_ms=0, metrics=BillingMetrics()
        )

    def put(self, per: Per = Per.DAY, usd: int = 1, project: str | None = None, **more: int) -> Budget:
        raised = Raise(Money(more["by"]), more["until_ms"]) if more else None
        with self.database.begin() as connection:
            whose = Whose(self.tenant, project, None)
            made = budgets.put(connection, whose, per, Money(usd * USD), raised, self.now_ms)
            count_if_new(connection, [made])
        assert self.projector.deliver()
        return made

    def event(self, request_id: str, **changes: object) -> UsageEvent:
        given = {"tenant": self.tenant, "project": "prj_other", "started_ms": self.now_ms} | changes
        return event(request_id, **given)  # type: ignore[arg-type]

    def publish(self, *events: UsageEvent) -> None:
        self.client.sadd(redis_keys.CELLS, "m1")
        for each in events:
            self.client.xadd(redis_keys.usage_stream("m1"), {redis_keys.USAGE_FIELD: each.to_json()})

    def spent(self, budget: Budget) -> int:
        with self.database.connect() as connection:
            return budgets.find(connection, budget.budget_id).spent.picousd

    def hold(self, request_id: str, budget: Budget, micro_usd: int = 50) -> None:
        call = budget_hold_call(
            self.tenant, request_id, micro_usd=micro_usd, budgets=[budget.budget_id], cell="m1"
        )
        assert execute(self.client, call)[0] == b"held"

    def shown(self, budget: Budget) -> tuple[int, int]:
        """Spent and held in Redis, in micro-dollars."""
        fields = [f"{budget.budget_id}:spent", f"{budget.budget_id}:held"]
        return tuple(int(each or 0) for each in self.client.hmget(self.keys[0], fields))  # type: ignore[return-value]

    @property
    def keys(self) -> tuple[str, str]:
        return redis_keys.budget_keys(self.tenant)


@pytest.fixture
def shop(database: Engine, raw_redis: redis.Redis) -> Shop:
    return Shop(database, raw_redis)


def test_what_is_recorded_is_spent_and_no_longer_held(shop: Shop) -> None:
    whole, part = shop.put(), shop.put(project=shop.project)
    shop.hold("a", whole)
    shop.publish(shop.event("a"), shop.event("b", project=shop.project), shop.event("c", tenant="ten_other"))
    shop.consumer.consume_once()
    assert (shop.spent(whole), shop.spent(part)) == (2 * COST, COST)
    assert (shop.shown(whole), shop.shown(part)) == ((40, 0), (20, 0))


def test_a_budget_that_is_set_late_counts_what_was_spent_in_its_period(shop: Shop) -> None:
    shop.publish(
        shop.event("a"), shop.event("yesterday", ended_ms=period_of(Per.DAY, shop.now_ms, "UTC")[0] - 1)
    )
    shop.consumer.consume_once()
    day, total = shop.put(), shop.put(Per.TOTAL)
    assert (shop.spent(day), shop.spent(total)) == (COST, 2 * COST)
    assert (shop.shown(day)[0], shop.shown(total)[0]) == (20, 40)


def test_when_a_budget_runs_out_is_told_by_what_was_spent_since_the_first_request(shop: Shop) -> None:
    shop.put(Per.TOTAL)
    began_ms = shop.now_ms - 10 * DAY_MS
    shop.publish(*(shop.event(f"r{day}", started_ms=began_ms + day * DAY_MS) for day in (1, 0, 2)))
    shop.consumer.consume_once()
    with shop.database.begin() as connection:
        prepaid.set_prepaid(connection, shop.tenant, True, shop.now_ms)
        found = {each.per: each for each in budgets.of_tenants(connection, [shop.tenant])[shop.tenant]}
        connection.execute(update(budget_table).values(amount_picousd=6 * COST))
    for per, since_ms in ((Per.TOTAL, began_ms), (Per.PREPAID, (began_ms + 1500) // HOUR_MS * HOUR_MS)):
        with shop.database.connect() as connection:
            each = budgets.find(connection, found[per].budget_id)
        assert (each.spent.picousd, each.first_ms) == (3 * COST, since_ms)
        assert each.runs_out_ms(shop.now_ms) == shop.now_ms + (shop.now_ms - since_ms)


def test_a_rotated_key_and_those_that_came_of_it_spend_the_same_budget(shop: Shop) -> None:
    with shop.database.begin() as connection:
        first, other = (api_keys.create(connection, shop.tenant).key.key_id for _ in range(2))
        whose = budgets.find_whose(connection, None, None, first)
        budget = budgets.put(connection, whose, Per.DAY, Money(USD), None, shop.now_ms)
        ends_ms = shop.now_ms + DAY_MS
        second, third = (api_keys.rotate(connection, first, ends_ms=ends_ms).key.key_id for _ in range(2))
        last = api_keys.rotate(connection, second, ends_ms=shop.now_ms - 1).key.key_id
    shop.projector.rebuild()
    keys = (first, second, third, last)
    shop.publish(*(shop.event(key, key_id=key) for key in (*keys, other)))
    shop.consumer.consume_once()
    assert (shop.spent(budget), shop.shown(budget)[0]) == (4 * COST, 80)
    with shop.database.begin() as connection:
        recount(connection, [budgets.find(connection, budget.budget_id)])
    assert shop.spent(budget) == 4 * COST
    shown = json.loads(shop.client.get(redis_keys.tenant(shop.tenant)) or b"")["budgets"]
    # The second has ended, and may be given more time.
    assert [(each["budget"], each["key_id"]) for each in shown] == [
        (budget.budget_id, key) for key in (first, *sorted((second, third, last)))
    ]


def test_a_budget_that_is_set_again_keeps_what_it_counted(shop: Shop) -> None:
    shop.put()
    shop.publish(shop.event("a"))
    shop.consumer.consume_once()
    again = shop.put(usd=2)
    assert (shop.spent(again), shop.shown(again)) == (COST, (20, 0))
    assert shop.client.hget(shop.keys[0], f"{again.budget_id}:limit") == b"2000000"


def test_a_death_between_the_ledger_and_redis_counts_once(shop: Shop) -> None:
    budget = shop.put()
    shop.hold("a", budget)
    shop.publish(shop.event("a"))
    # Redis refuses what comes after the commit.
    shop.client.set(shop.keys[1] + ":kept", "")
    shop.client.rename(shop.keys[0], "aside")
    shop.client.set(shop.keys[0], "not a hash")
    with pytest.raises(redis.ResponseError):
        shop.consumer.consume_once()
    shop.client.rename("aside", shop.keys[0])
    shop.new_consumer().consume_once()
    assert (shop.spent(budget), shop.shown(budget)) == (COST, (20, 0))
    assert shop.client.xlen(redis_keys.usage_stream("m1")) == 0


def test_an_event_belongs_to_the_period_in_which_it_ended(shop: Shop) -> None:
    budget = shop.put()
    before_ms = budget.from_ms - 1
    shop.publish(shop.event("late", ended_ms=before_ms), shop.event("now"))
    shop.consumer.consume_once()
    assert (shop.spent(budget), shop.shown(budget)[0]) == (COST, 20)


def test_what_is_priced_later_is_spent_in_its_period(shop: Shop) -> None:
    budget = shop.put()
    shop.publish(shop.event("a", model="m2"))
    shop.consumer.consume_once()
    assert shop.spent(budget) == 0
    with shop.database.begin() as connection:
        set_price(connection, "m2", input="1", cached_input="1", output="2", valid_from_ms=0)
        backfill(connection, Scope("m2", 0, shop.now_ms + 1), dry_run=False)
    assert shop.spent(budget) == COST


def test_a_period_that_is_over_begins_again_and_a_raise_ends(shop: Shop) -> None:
    budget = shop.put(by=2 * USD, until_ms=shop.now_ms + 10**9)
    assert shop.client.hget(shop.keys[0], f"{budget.budget_id}:limit") == b"3000000"
    shop.publish(shop.event("a"))
    shop.consumer.consume_once()
    with shop.database.begin() as connection:
        over = {"from_ms": 1, "until_ms": 2, "raised_until_ms": 2}
        connection.execute(update(budget_table).values(over))
    with shop.database.begin() as connection:
        assert connection.execute(budgets.select_any_due()).scalar_one()
        budgets.begin_periods(connection, shop.now_ms)
    with shop.database.begin() as connection:
        assert not connection.execute(budgets.select_any_due()).scalar_one()
        begun = budgets.find(connection, budget.budget_id)
    assert (begun.from_ms, begun.until_ms, begun.raised) == (budget.from_ms, budget.until_ms, None)
    assert shop.spent(budget) == COST
    assert shop.projector.deliver()
    assert shop.client.hget(shop.keys[0], f"{budget.budget_id}:limit") == b"1000000"


def test_emptied_redis_has_the_budgets_again(shop: Shop) -> None:
    budget = shop.put()
    shop.publish(shop.event("a"))
    shop.consumer.consume_once()
    shop.client.flushall()
    shop.projector.keep_up()
    while shop.projector.keep_up():
        pass
    assert shop.shown(budget) == (20, 0)


@pytest.mark.parametrize("state", ["recorded", "reserved", "gone"])
def test_what_nobody_will_record_is_given_back(shop: Shop, state: str) -> None:
    budget = shop.put()
    shop.hold("a", budget)
    if state == "recorded":
        # As if the process that recorded it had died before it said so.
        consumer = Consumer(
            shop.database, shop.client, name="one", batch=500, claim_idle_ms=0, metrics=BillingMetrics()
        )
        held = shop.client.hget(shop.keys[1], "a")
        shop.publish(shop.event("a"))
        consumer.consume_once()
        shop.client.hset(shop.keys[1], "a", held)
        shop.client.hincrby(shop.keys[0], f"{budget.budget_id}:held", 50)
    elif state == "reserved":
        shop.client.hset(redis_keys.reservation("m1", "a"), "state", "open")
    held_budgets.sweep(shop.database, shop.client)
    assert shop.shown(budget)[1] == 50, "it is too young"
    entry = (shop.client.hget(shop.keys[1], "a") or b"").replace(b'"at_ms":', b'"at_ms":0,"was":')
    shop.client.hset(shop.keys[1], "a", entry)
    held_budgets.sweep(shop.database, shop.client)
    assert shop.shown(budget)[1] == (50 if state == "reserved" else 0)


def test_another_time_zone_is_another_day(shop: Shop) -> None:
    budget = shop.put()
    with shop.database.begin() as connection:
        tenants.change(connection, shop.tenant, time_zone="Pacific/Auckland")
        (moved,) = budgets.move_to_zone(connection, shop.tenant, shop.now_ms)
        recount(connection, [moved])
    assert (moved.from_ms, moved.until_ms) == period_of(Per.DAY, shop.now_ms, "Pacific/Auckland")
    assert shop.projector.deliver()
    assert int(shop.client.hget(shop.keys[0], f"{budget.budget_id}:from") or 0) == moved.from_ms


def test_sums_are_exact(shop: Shop) -> None:
    budget = shop.put(Per.TOTAL)
    shop.publish(*(shop.event(f"r{number}", tokens=(number, 0, 3 * number)) for number in range(1, 40)))
    shop.consumer.consume_once()
    with shop.database.connect() as connection:
        owed = connection.execute(
            text("select sum(amount_picousd) from ledger_posting where account = 'receivable'")
        ).scalar_one()
    assert Decimal(shop.spent(budget)) == owed
