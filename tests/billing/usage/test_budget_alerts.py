"""Alerts of budgets: once a period, signed, and again until somebody takes them."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
from sqlalchemy import Engine, update

from billing.catalogue import budget_alerts, budgets
from billing.catalogue.budget_alerts import Alert
from billing.catalogue.budget_periods import Per
from billing.catalogue.budgets import Budget
from billing.schema.budgets import budget as budget_table
from billing.schema.budgets import budget_spent
from billing.usage.budget_alerts import AlertSender
from tests.billing.usage.test_budgets import USD, Shop
from tests.fixtures.webhook import Webhook, trickle


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    yield made
    made.close()


class Clock:
    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def shop(database: Engine, raw_redis: redis.Redis) -> Shop:
    return Shop(database, raw_redis)


@pytest.fixture
def clock(shop: Shop) -> Clock:
    return Clock(shop.now_ms)


@pytest.fixture
def sender(database: Engine, clock: Clock) -> Iterator[AlertSender]:
    made = AlertSender(database, verify=True, timeout_s=0.5, now_ms=clock)
    yield made
    made.close()


def put_alert(shop: Shop, budget: Budget, percent: int, url: str) -> Alert:
    with shop.database.begin() as connection:
        return budget_alerts.put(connection, budget.budget_id, percent, url)


def spend(shop: Shop, budget: Budget, picousd: int) -> None:
    with shop.database.begin() as connection:
        connection.execute(
            update(budget_spent)
            .where(budget_spent.c.budget_id == budget.budget_id)
            .values(amount_picousd=picousd, first_ms=budget.from_ms)
        )


def failure(shop: Shop, budget: Budget) -> str | None:
    with shop.database.connect() as connection:
        (alert,) = budget_alerts.of_budgets(connection, [budget.budget_id])[budget.budget_id]
    return alert.failure


def test_an_alert_is_sent_once_it_is_reached_and_is_signed(
    shop: Shop, webhook: Webhook, sender: AlertSender, clock: Clock
) -> None:
    budget = shop.put()
    alert = put_alert(shop, budget, 80, webhook.url)
    spend(shop, budget, 799_999_999_999)
    sender.round()
    assert webhook.taken == []
    spend(shop, budget, 800_000_000_000)
    sender.round()
    sender.round()
    ((headers, body),) = webhook.taken
    said = json.loads(body)
    assert (said["type"], said["percent"], said["budget"]) == ("budget.spent", 80, budget.budget_id)
    assert (said["usd"], said["spent"], said["left"]) == ("1.00", "0.80", "0.20")
    assert (said["tenant"], said["project"], said["key_id"]) == (shop.tenant, None, None)
    # By the specification's own words, not by our function.
    name, at_s = headers["webhook-id"], headers["webhook-timestamp"]
    assert int(at_s) == clock.now_ms // 1000
    key = base64.b64decode(alert.secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{name}.{at_s}.{body.decode()}".encode(), hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


def test_what_is_not_taken_is_sent_again_under_the_same_id_and_ever_later(
    shop: Shop, webhook: Webhook, sender: AlertSender, clock: Clock
) -> None:
    budget = shop.put()
    put_alert(shop, budget, 50, webhook.url)
    spend(shop, budget, 10**12)
    webhook.status = 503
    waits_ms = []
    for _ in range(4):
        sender.round()
        count, began_ms = len(webhook.taken), clock.now_ms
        while len(webhook.taken) == count:
            clock.now_ms += 1_000
            sender.round()
        waits_ms.append(clock.now_ms - began_ms)
    assert waits_ms == sorted(waits_ms)
    assert waits_ms[0] < waits_ms[-1]
    assert failure(shop, budget) == "status 503"
    webhook.status = 204
    clock.now_ms += 3_600_000
    sender.round()
    count = len(webhook.taken)
    clock.now_ms += 3_600_000
    sender.round()
    assert len(webhook.taken) == count
    assert failure(shop, budget) is None
    assert len({headers["webhook-id"] for headers, _ in webhook.taken}) == 1


def test_a_receiver_that_is_away_stops_no_other(shop: Shop, webhook: Webhook, sender: AlertSender) -> None:
    lost, told = shop.put(), shop.put(project=shop.project)
    put_alert(shop, lost, 1, "http://127.0.0.1:1/nobody")
    put_alert(shop, told, 1, webhook.url)
    for budget in (lost, told):
        spend(shop, budget, 10**12)
    sender.round()
    assert len(webhook.taken) == 1
    assert failure(shop, lost) == "ConnectError"


@pytest.mark.parametrize(
    ("begins", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nx-never: ", "ReadTimeout"),
        # It has taken it; what else it says nobody reads.
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", None),
    ],
    ids=["head", "body"],
)
def test_a_receiver_whose_answer_does_not_end_stops_no_other(
    shop: Shop, webhook: Webhook, sender: AlertSender, begins: bytes, said: str | None
) -> None:
    with trickle(begins) as url:
        endless, told = shop.put(), shop.put(project=shop.project)
        put_alert(shop, endless, 1, url)
        put_alert(shop, told, 1, webhook.url)
        for budget in (endless, told):
            spend(shop, budget, 10**12)
        sender.round()
    assert len(webhook.taken) == 1
    assert failure(shop, endless) == said


def test_the_next_period_is_told_again(
    shop: Shop, webhook: Webhook, sender: AlertSender, clock: Clock
) -> None:
    budget = shop.put()
    put_alert(shop, budget, 50, webhook.url)
    spend(shop, budget, 10**12)
    sender.round()
    assert budget.until_ms is not None
    with shop.database.begin() as connection:
        connection.execute(update(budget_table).values(from_ms=budget.until_ms, until_ms=budget.until_ms + 1))
    sender.round()
    assert len(webhook.taken) == 1
    with shop.database.begin() as connection:
        connection.execute(update(budget_spent).values(from_ms=budget.until_ms))
    sender.round()
    assert len(webhook.taken) == 2


def told(webhook: Webhook) -> list[tuple[int, str]]:
    """At how many percent of what."""
    return [(said["percent"], said["usd"]) for said in (json.loads(body) for _, body in webhook.taken)]


def test_an_alert_of_a_budget_that_was_set_higher_is_sent_again_when_it_is_reached_again(
    shop: Shop, webhook: Webhook, sender: AlertSender
) -> None:
    budget = shop.put(Per.TOTAL)
    for percent in (50, 80):
        put_alert(shop, budget, percent, webhook.url)
    spend(shop, budget, 9 * 10**11)
    sender.round()
    shop.put(Per.TOTAL, usd=1)
    sender.round()
    assert told(webhook) == [(50, "1.00"), (80, "1.00")]
    shop.put(Per.TOTAL, usd=2)  # 45 % of it
    sender.round()
    assert len(webhook.taken) == 2
    spend(shop, budget, 17 * 10**11)
    sender.round()
    assert told(webhook)[2:] == [(50, "2.00"), (80, "2.00")]
    shop.put(Per.TOTAL, usd=1, by=2 * USD, until_ms=shop.now_ms + 10**9)  # 57 % of 3 USD
    spend(shop, budget, 24 * 10**11)
    sender.round()
    assert told(webhook)[4:] == [(80, "3.00")]
    assert len({headers["webhook-id"] for headers, _ in webhook.taken}) == 5


def test_an_alert_that_is_set_again_is_sent_again(shop: Shop, webhook: Webhook, sender: AlertSender) -> None:
    budget = shop.put()
    old = put_alert(shop, budget, 50, webhook.url)
    spend(shop, budget, 10**12)
    sender.round()
    put_alert(shop, budget, 50, webhook.url)
    with shop.database.begin() as connection:
        budget_alerts.sent(connection, old, budget.from_ms)  # by a round that began before
    sender.round()
    assert len(webhook.taken) == 2


def test_a_budget_that_is_set_higher_while_its_alert_is_sent_is_told_again(
    shop: Shop, webhook: Webhook, sender: AlertSender
) -> None:
    budget = shop.put()
    put_alert(shop, budget, 80, webhook.url)
    spend(shop, budget, 9 * 10**11)
    webhook.before_answer = lambda: shop.put(usd=2)
    sender.round()
    webhook.before_answer = None
    spend(shop, budget, 2 * 10**12)
    sender.round()
    assert told(webhook) == [(80, "1.00"), (80, "2.00")]


def test_a_removed_alert_is_not_sent(shop: Shop, webhook: Webhook, sender: AlertSender) -> None:
    budget = shop.put()
    put_alert(shop, budget, 50, webhook.url)
    spend(shop, budget, 10**12)
    with shop.database.begin() as connection:
        budget_alerts.remove(connection, budget.budget_id, 50)
    sender.round()
    assert webhook.taken == []


@pytest.mark.parametrize(
    ("spent_percent", "passed_percent", "out_at_percent"),
    [(50, 25, 50), (10, 50, None), (100, 40, 40), (120, 40, 40), (0, 40, None)],
)
def test_when_it_runs_out_if_spending_goes_on_so(
    shop: Shop, spent_percent: int, passed_percent: int, out_at_percent: int | None
) -> None:
    budget = shop.put()
    assert budget.until_ms is not None
    spend(shop, budget, spent_percent * 10**10)
    with shop.database.connect() as connection:
        seen = budgets.find(connection, budget.budget_id)
    length_ms = budget.until_ms - budget.from_ms
    now_ms = budget.from_ms + length_ms * passed_percent // 100
    out_ms = seen.runs_out_ms(now_ms)
    expected = None if out_at_percent is None else budget.from_ms + length_ms * out_at_percent // 100
    assert out_ms == expected
    # In total there is no end, nor a beginning but that of spending.
    in_total = replace(seen, per=Per.TOTAL, from_ms=0, first_ms=budget.from_ms, until_ms=None)
    out_ms = now_ms + (now_ms - budget.from_ms) * (100 - spent_percent) // (spent_percent or 1)
    expected = now_ms if spent_percent >= 100 else out_ms if spent_percent else None
    assert in_total.runs_out_ms(now_ms) == expected
    assert replace(in_total, first_ms=None).runs_out_ms(now_ms) == (now_ms if spent_percent >= 100 else None)
