"""Deliveries to sinks: each request at least once, in order, always under the same id, whatever fails."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from billing.catalogue import tenants
from billing.catalogue.price_book import set_price
from billing.exports import sinks
from billing.exports.deliver import Deliverer
from billing.exports.recorded import Form
from billing.exports.sinks import Lag, Sink
from billing.metrics import BillingMetrics
from billing.page import PageRequest
from billing.refusals import Invalid
from tests.billing.events import event
from tests.billing.exports.test_shapes import check
from tests.billing.ledger.test_chain import record
from tests.fixtures.webhook import Webhook, trickle

DAY_MS = 86_400_000
# When the requests of these tests have ended, and a moment after it.
ENDED_MS = 1_700_000_001_500


class Post:
    """A database with a tenant, a receiver, and a deliverer whose clock is set."""

    def __init__(self, database: Engine, webhook: Webhook) -> None:
        self.database, self.webhook, self.now_ms = database, webhook, ENDED_MS + 1000
        self.metrics = BillingMetrics()
        self.deliverer = self.new_deliverer()
        with database.begin() as connection:
            self.tenant = tenants.create(connection, "acme").tenant_id
            set_price(connection, "m1", input="1", cached_input="1", output="2", valid_from_ms=0)

    def new_deliverer(self) -> Deliverer:
        return Deliverer(self.database, self.metrics, verify=True, timeout_s=0.5, now_ms=lambda: self.now_ms)

    def sink(self, form: Form = Form.CLOUDEVENTS, **more: Any) -> Sink:
        with self.database.begin() as connection:
            return sinks.create(connection, more.pop("url", self.webhook.url), form, **more)

    def use(self, *names: str, **changes: Any) -> None:
        of = {"tenant": self.tenant} | changes
        with self.database.begin() as connection:
            record(connection, *(event(name, **of) for name in names))

    def later(self, ms: int) -> None:
        self.now_ms += ms
        while self.deliverer.round():
            pass

    def taken(self) -> list[list[str]]:
        """The ids in each call."""
        return [[each["id"] for each in json.loads(body)] for _, body in self.webhook.taken]

    def metered(self) -> list[tuple[str, str]]:
        """Request and kind of each meter event that was taken."""
        bodies = [json.loads(body) for _, body in self.webhook.taken]
        events = [each for body in bodies for each in body.get("events", [])]
        return [tuple(each["identifier"].split(":")) for each in events]

    def skipped(self, sink: Sink) -> list[tuple[str, str]]:
        with self.database.connect() as connection:
            found = sinks.skipped(connection, sink.sink_id, PageRequest(10)).rows
        return [(each.request_id, each.why) for each in found]

    def lag(self, sink: Sink) -> Lag:
        with self.database.connect() as connection:
            return sinks.lags(connection)[sink.sink_id]

    def oldest_s(self, sink: Sink) -> float | None:
        name = "taas_export_oldest_undelivered_seconds"
        return self.metrics.registry.get_sample_value(name, {"sink": sink.sink_id})


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    yield made
    made.close()


@pytest.fixture
def post(database: Engine, webhook: Webhook) -> Iterator[Post]:
    made = Post(database, webhook)
    yield made
    made.deliverer.close()


def test_requests_are_sent_in_order_once_signed_and_as_published(post: Post) -> None:
    post.use("before")
    sink = post.sink(bearer="open-sesame")
    post.use(*(f"r{number:03d}" for number in range(150)))
    assert post.lag(sink).undelivered == 150
    post.later(0)
    post.later(DAY_MS)
    first, second = post.taken()
    assert first + second == [f"r{number:03d}" for number in range(150)]
    (headers, body), _ = post.webhook.taken
    assert headers["authorization"] == "Bearer open-sesame"
    assert headers["content-type"] == "application/cloudevents-batch+json"
    assert headers["webhook-signature"].startswith("v1,")
    check(Form.CLOUDEVENTS, json.loads(body))
    assert post.lag(sink) == Lag()
    assert post.oldest_s(sink) == 0
    assert "open-sesame" not in repr(sink) + str(sink)


def test_fault_45_a_receiver_that_is_away_for_three_days_gets_everything_once(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    sink = post.sink(bearer="open-sesame")
    post.webhook.status = 503
    began_ms, calls = post.now_ms, 0
    for day in range(3):
        post.use(f"day{day}a", f"day{day}b", started_ms=ENDED_MS + day * DAY_MS)
        for _ in range(48):
            post.later(DAY_MS // 48)
        calls, before = len(post.webhook.taken), calls
        assert 20 <= calls - before <= 48  # once an hour at least
    assert post.lag(sink).failure == "status 503"
    assert (post.oldest_s(sink) or 0) >= 0
    assert post.now_ms - began_ms == 3 * DAY_MS
    post.webhook.status = 200
    post.webhook.taken.clear()
    post.later(3_600_000)
    assert post.taken() == [["day0a", "day0b", "day1a", "day1b", "day2a", "day2b"]]
    assert post.lag(sink) == Lag()
    assert "open-sesame" not in caplog.text


def test_fault_45_what_was_taken_and_answered_500_comes_again_under_the_same_ids(post: Post) -> None:
    post.sink()
    post.use("r1", "r2")
    post.webhook.status = 500
    post.later(0)
    post.later(3_600_000)
    post.use("r3")
    post.webhook.status = 200
    post.later(0)
    assert post.taken() == [["r1", "r2"]] * 2  # it waits
    post.later(3_600_000)
    assert post.taken() == [["r1", "r2"], ["r1", "r2"], ["r1", "r2", "r3"]]
    # A receiver that knows a message by its id drops nothing that it has not seen.
    first, again, more = (headers["webhook-id"] for headers, _ in post.webhook.taken)
    assert first == again != more


def test_fault_45_a_request_of_35_days_ago_is_reported_and_not_sent(post: Post) -> None:
    sink = post.sink(Form.STRIPE, tenant_id=post.tenant, customer="cus_1", bearer="sk_live")
    post.use("old1", "old2")
    post.use("new", started_ms=ENDED_MS + 30 * DAY_MS)
    post.later(35 * DAY_MS)
    (asked, _), (headers, body) = post.webhook.taken  # a session first
    assert (asked["authorization"], headers["authorization"]) == ("Bearer sk_live", "Bearer tok_1")
    sent = json.loads(body)
    check(Form.STRIPE, [sent])
    assert {each["identifier"] for each in sent["events"]} == {"new:uncached_input", "new:output"}
    with post.database.connect() as connection:
        report = sinks.skipped(connection, sink.sink_id, PageRequest(10)).rows
    assert [(each.request_id, each.ended_ms, each.why) for each in report] == [
        ("old1", ENDED_MS, "too_old"), ("old2", ENDED_MS, "too_old"),
    ]  # fmt: skip
    assert post.lag(sink) == Lag(skipped=2)


def test_fault_45_stripe_is_not_sent_again_what_it_may_have_taken_more_than_a_day_ago(post: Post) -> None:
    sink = post.sink(Form.STRIPE, tenant_id=post.tenant, customer="cus_1", bearer="sk_live")
    post.use("r1", "r2")
    post.webhook.statuses = [200, 500]  # it has given a session, and then taken them, perhaps
    post.later(0)
    post.use("r3")
    post.webhook.statuses = [200, 400]  # it says for certain that it has not: of this call
    post.later(DAY_MS // 2)
    assert post.lag(sink).failure == "status 400"
    post.webhook.taken.clear()
    post.later(DAY_MS // 2)
    assert {name for name, _ in post.metered()} == {"r3"}
    assert post.skipped(sink) == [("r1", "unsure"), ("r2", "unsure")]
    assert post.lag(sink) == Lag(skipped=2)


def test_fault_45_stripe_is_sent_all_again_that_it_has_not_taken_for_certain(post: Post) -> None:
    sink = post.sink(Form.STRIPE, tenant_id=post.tenant, customer="cus_1", bearer="sk_live")
    post.use("r1")
    post.webhook.status = 401  # no session
    post.later(0)
    post.later(3 * DAY_MS)
    post.webhook.statuses = [200, 500]
    post.later(DAY_MS)
    post.webhook.status = 200
    post.webhook.taken.clear()
    post.later(DAY_MS - 3_600_000)  # it still knows the identifiers again
    assert len(post.metered()) == 2
    assert post.lag(sink) == Lag()


class LagoServer:
    """Answers as Lago's `events/batch`: it takes all events of a call or none, and refuses a call with one
    that it has.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.wrong: set[str] = set()
        self.loses_answer = False

    def __call__(self, body: bytes) -> tuple[int, bytes]:
        asked = [each["transaction_id"] for each in json.loads(body)["events"]]
        errors = {}
        for index, name in enumerate(asked):
            if name in self.events:
                errors[str(index)] = {"transaction_id": ["value_already_exist"]}
            if name in self.wrong:
                errors.setdefault(str(index), {})["code"] = ["value_is_mandatory"]
        if errors:
            refusal = {"status": 422, "code": "validation_errors", "error_details": errors}
            return 422, json.dumps(refusal).encode()
        self.events += asked
        return (504, b"") if self.loses_answer else (200, b"{}")


def test_fault_45_what_lago_has_taken_and_not_answered_holds_nothing_up(post: Post) -> None:
    sink = post.sink(Form.LAGO, tenant_id=post.tenant, customer="sub_1")
    post.webhook.answer = lago = LagoServer()
    lago.loses_answer = True
    post.use("r1", "r2")
    post.later(0)
    assert (len(lago.events), post.lag(sink).failure) == (4, "status 504")
    lago.loses_answer = False
    post.later(DAY_MS)  # it has all of them
    assert post.lag(sink) == Lag()
    lago.loses_answer = True
    post.use("r3")
    post.later(0)
    lago.loses_answer = False
    post.use("r4")
    post.later(DAY_MS)  # it has some of them
    assert post.lag(sink) == Lag()
    of = ("uncached_input", "output")
    assert lago.events == [f"r{number}:{kind}" for number in range(1, 5) for kind in of]


def test_what_lago_refuses_for_another_reason_too_is_not_taken(post: Post) -> None:
    sink = post.sink(Form.LAGO, tenant_id=post.tenant, customer="sub_1")
    post.webhook.answer = lago = LagoServer()
    post.use("r1")
    post.later(0)
    lago.loses_answer = True
    post.use("r2")
    post.later(0)
    lago.wrong = {"r2:output"}
    post.later(DAY_MS)
    assert (post.lag(sink).undelivered, post.lag(sink).failure) == (1, "status 422")
    lago.wrong = set()
    post.later(DAY_MS)
    assert post.lag(sink) == Lag()


def test_a_slow_receiver_and_a_dead_one_stop_no_other(post: Post) -> None:
    slow, answered = Webhook(), threading.Event()
    slow.before_answer = lambda: answered.wait(10)
    try:
        lost = post.sink(url="http://127.0.0.1:1/nobody")
        held = post.sink(url=slow.url)
        post.sink()
        post.use("r1")
        post.later(0)
        assert post.taken() == [["r1"]]
        assert (post.lag(lost).failure, post.lag(held).failure) == ("ConnectError", "ReadTimeout")
    finally:
        answered.set()
        slow.close()


def test_a_session_of_stripe_is_read_to_a_size_and_within_a_time(post: Post) -> None:
    sink = post.sink(Form.STRIPE, tenant_id=post.tenant, customer="cus_1", bearer="sk_live")
    post.use("r1")
    post.webhook.answer = lambda body: (200, b" " * 100_000 + b'{"authentication_token":"tok_1"}')
    post.later(0)
    assert post.lag(sink).failure == "session: no token"
    with trickle(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n") as url:
        held = post.sink(
            Form.STRIPE, tenant_id=post.tenant, customer="cus_1", bearer="sk", url=url, from_ms=0
        )
        post.later(0)
    assert post.lag(held).failure == "ReadTimeout"


def test_a_batch_that_is_refused_stops_only_its_tenant(post: Post) -> None:
    sink = post.sink()
    with post.database.begin() as connection:
        other = tenants.create(connection, "other").tenant_id
    post.use("r1")
    post.use("o1", tenant=other)
    post.webhook.statuses = [400]
    post.later(0)
    assert sorted(post.taken()) == [["o1"], ["r1"]]
    assert post.lag(sink).undelivered == 1
    post.later(3_600_000)
    assert post.lag(sink) == Lag()


def test_a_paused_sink_is_sent_nothing_and_resumes_where_it_was(post: Post) -> None:
    sink = post.sink(Form.LAGO, tenant_id=post.tenant, customer="sub_1", meter="llm")
    with post.database.begin() as connection:
        sinks.pause(connection, sink.sink_id, True)
    post.use("r1")
    post.later(0)
    assert post.webhook.taken == []
    assert (post.oldest_s(sink) is not None, post.lag(sink).undelivered) == (True, 1)
    with post.database.begin() as connection:
        sinks.pause(connection, sink.sink_id, False)
    post.later(0)
    ((_, body),) = post.webhook.taken
    check(Form.LAGO, [json.loads(body)])
    assert {each["code"] for each in json.loads(body)["events"]} == {"llm"}
    with post.database.begin() as connection:
        sinks.remove(connection, sink.sink_id)
    post.later(0)
    assert post.oldest_s(sink) is None
    with post.database.begin() as connection, pytest.raises(Invalid):
        sinks.create(connection, post.webhook.url, Form.STRIPE)


_ROUND = """
import sys
from sqlalchemy import create_engine
from billing.exports.deliver import Deliverer
from billing.metrics import BillingMetrics
Deliverer(create_engine(sys.argv[1]), BillingMetrics(), verify=True).round()
"""


def test_fault_45_billing_killed_before_it_has_noted_a_delivery_delivers_again(
    post: Post, migrated_database_url: str
) -> None:
    sink = post.sink()
    post.use("r1", "r2")
    died: list[Any] = []

    def kill() -> None:
        os.kill(process.pid, signal.SIGKILL)
        died.append(process.wait())

    post.webhook.before_answer = kill
    process = subprocess.Popen([sys.executable, "-c", _ROUND, migrated_database_url])
    process.wait(30)
    assert died == [-signal.SIGKILL]
    assert post.lag(sink).undelivered == 2
    post.webhook.before_answer = None
    post.later(0)
    assert post.taken() == [["r1", "r2"], ["r1", "r2"]]
    assert post.lag(sink) == Lag()


def test_fault_45_what_stripe_was_sent_when_billing_was_killed_is_not_sent_again_after_a_day(
    post: Post, migrated_database_url: str
) -> None:
    sink = post.sink(Form.STRIPE, tenant_id=post.tenant, customer="cus_1", bearer="sk_live")
    now_ms = time.time_ns() // 1_000_000
    post.use("r1", started_ms=now_ms)

    def kill() -> None:
        if len(post.webhook.taken) == 2:  # after the session
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    post.webhook.before_answer = kill
    process = subprocess.Popen([sys.executable, "-c", _ROUND, migrated_database_url])
    assert process.wait(30) == -signal.SIGKILL
    post.webhook.taken.clear()
    post.now_ms = now_ms
    post.later(DAY_MS)
    assert (post.metered(), post.skipped(sink)) == ([], [("r1", "unsure")])
