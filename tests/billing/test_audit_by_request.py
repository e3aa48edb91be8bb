"""The audit of engines that count their requests: exact while requests come and go, and every leak has a
name.
"""

from collections.abc import Iterator

import httpx
import pytest
import redis
from sqlalchemy import Engine, insert, text, update

from billing.audit.engine_counters import CounterPoller
from billing.audit.engine_runs import close_run
from billing.audit.report import AuditReport
from billing.audit.run import Auditor
from billing.catalogue.price_book import set_price
from billing.findings import Finding, FindingKind
from billing.fleet.engine_request_counts import read_instance
from billing.ledger.entries import ReceivedEvent, record_events
from billing.schema.catalogue import model as model_table
from billing.schema.catalogue import model_weights
from billing.schema.ledger import engine_counter
from billing.wire import redis_keys
from billing.wire.ending import Ending
from billing.wire.tokens import CounterPair
from billing.wire.usage_event import UsageEvent, UsageSource
from tests.billing.engine_server import ScriptedEngine, register, serve
from tests.billing.events import event
from tests.billing.usage.test_reap import reserve


@pytest.fixture
def poller(database: Engine, raw_redis: redis.Redis) -> Iterator[CounterPoller]:
    with database.begin() as connection:
        connection.execute(
            insert(model_table).values(
                name="m1", pool="m1", cell="m1", visible="everyone", routes=["chat"], engine_model="m1",
                context_tokens=1000, default_max_tokens=100, weights_version=1, chat_template_kwargs=[],
            )
        )  # fmt: skip
        connection.execute(
            insert(model_weights).values(model="m1", version=1, w_in_mu=1000, w_cached_mu=100, w_out_mu=4000)
        )
        set_price(connection, "m1", input="1", cached_input="1", output="1", valid_from_ms=0)
    made = CounterPoller(database, raw_redis, timeout_ms=2000)
    yield made
    made.close()


@pytest.fixture
def auditor(database: Engine, raw_redis: redis.Redis, poller: CounterPoller) -> Auditor:
    return Auditor(database, raw_redis, poller)


@pytest.fixture
def engine(raw_redis: redis.Redis) -> Iterator[ScriptedEngine]:
    with serve(ScriptedEngine(request_counts=True)) as made:
        register(raw_redis, made, counts=True)
        yield made


def record(database: Engine, *events: UsageEvent) -> None:
    with database.begin() as connection:
        record_events(connection, [ReceivedEvent.read(item.to_json()) for item in events])


def found(report: AuditReport, kind: FindingKind) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind is kind]


def test_requests_that_run_are_open_with_what_the_engine_counts_in_that_moment(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.ended = {"done": (10, 5), "settled": (20, 7)}
    engine.live = {"stream": (30, 100), "whole": (40, 55)}
    record(database, event("done", (10, 0, 5)))
    raw_redis.xadd(
        redis_keys.usage_stream("m1"), {redis_keys.USAGE_FIELD: event("settled", (20, 0, 7)).to_json()}
    )
    reserve(raw_redis, "stream", lease_ms=60_000, tokens=(30, 0, 60))
    reserve(raw_redis, "whole", lease_ms=60_000)
    report = auditor.audit(wait_ms=0)
    assert report.residual_tokens == 0
    assert not report.findings
    assert report.instances[0].produced == CounterPair(100, 167)
    assert report.instances[0].metered.open == CounterPair(90, 162)


def test_a_request_that_nobody_knows_is_a_leak_by_its_name(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.ended = {"kept": (10, 5), "dropped": (20, 7)}
    engine.live = {"open": (30, 100), "unreserved": (1, 2)}
    record(database, event("kept", (10, 0, 5)))
    reserve(raw_redis, "open", lease_ms=60_000)
    report = auditor.audit(wait_ms=30_000)
    assert report.residual_tokens == 20 + 7 + 1 + 2
    (unknown,) = found(report, FindingKind.REQUEST_UNKNOWN)
    assert list(unknown.ids) == ["dropped", "unreserved"]
    assert unknown.tokens == CounterPair(21, 9)


@pytest.mark.parametrize(("tokens", "residual"), [((10, 0, 4), 1), ((9, 0, 5), 1), ((10, 0, 6), 1)])
def test_an_event_that_says_something_else_than_the_engine_is_a_leak_by_its_name(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine,
    tokens: tuple[int, int, int], residual: int,
) -> None:  # fmt: skip
    engine.ended = {"right": (10, 5), "wrong": (10, 5)}
    engine.live = {"open": (30, 100)}
    reserve(raw_redis, "open", lease_ms=60_000)
    record(database, event("right", (10, 0, 5)), event("wrong", tokens))
    for _ in range(2):  # it stays, although the engine speaks of it only once
        report = auditor.audit(wait_ms=30_000)
        assert report.residual_tokens == residual
        (differs,) = found(report, FindingKind.REQUEST_DIFFERS)
        assert list(differs.ids) == ["wrong"]


def test_what_a_death_explains_is_that_requests_tokens_and_no_more(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.ended = {"died": (10, 50), "unheard": (7, 9), "dropped": (20, 7), "short": (10, 5)}
    engine.live = {"open": (30, 100)}
    reserve(raw_redis, "open", lease_ms=60_000)
    record(
        database,
        event("died", (10, 0, 20), Ending.GATEWAY_DIED, source=UsageSource.CHECKPOINT),
        event("unheard", (0, 0, 0), Ending.CLIENT_DISCONNECT, source=UsageSource.UNREAD),
        event("short", (10, 0, 4)),
    )
    report = auditor.audit(wait_ms=30_000)
    assert report.instances[0].metered.absorbed == CounterPair(10 + 7, 50 + 9)
    assert {name for each in found(report, FindingKind.RECONCILED) for name in each.ids} == {
        "died",
        "unheard",
    }
    assert report.residual_tokens == 20 + 7 + 1
    assert list(found(report, FindingKind.REQUEST_UNKNOWN)[0].ids) == ["dropped"]
    assert list(found(report, FindingKind.REQUEST_DIFFERS)[0].ids) == ["short"]
    again = auditor.audit(wait_ms=30_000)
    assert again.instances[0].metered.absorbed == CounterPair(17, 59), "absorbed once"
    assert again.residual_tokens == 28


def test_a_request_whose_gateway_died_and_that_still_runs_is_open_with_what_it_goes_on_producing(
    database: Engine, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.live = {"died": (10, 50)}
    record(database, event("died", (10, 0, 20), Ending.GATEWAY_DIED, source=UsageSource.CHECKPOINT))
    report = auditor.audit(wait_ms=0)
    assert (report.residual_tokens, report.instances[0].metered.open) == (0, CounterPair(0, 30))
    engine.live, engine.ended = {}, {"died": (10, 60)}
    report = auditor.audit(wait_ms=30_000)
    assert (report.residual_tokens, report.instances[0].metered.absorbed) == (0, CounterPair(10, 60))


def test_a_try_on_another_instance_is_absorbed_where_it_was_made(
    database: Engine, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.ended = {"moved": (12, 1)}
    record(database, event("moved", (12, 0, 30), instance="elsewhere"))
    report = auditor.audit(wait_ms=0)
    here = next(each for each in report.instances if each.instance == "i1")
    assert (here.residual, here.metered.absorbed) == (CounterPair(0, 0), CounterPair(12, 1))


def test_what_measuring_costs_is_open_while_it_runs_and_absorbed_then(
    auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.live = {"calibration-x-1": (100, 10)}
    report = auditor.audit(wait_ms=0)
    assert (report.residual_tokens, report.instances[0].metered.open) == (0, CounterPair(100, 10))
    engine.live, engine.ended = {}, {"calibration-x-1": (100, 20)}
    report = auditor.audit(wait_ms=0)
    assert (report.residual_tokens, report.instances[0].metered.absorbed) == (0, CounterPair(100, 20))
    assert not report.findings


def test_of_an_engine_that_died_each_request_is_held_against_what_it_said_last(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.ended = {"done": (10, 5), "dropped": (3, 3)}
    engine.live = {"stream": (30, 100), "whole": (40, 55)}
    record(database, event("done", (10, 0, 5)))
    for name in ("stream", "whole"):
        reserve(raw_redis, name, lease_ms=60_000)
    poller.poll_once()
    register(raw_redis, engine, counts=True, status="down", lease_until_ms=2**52, final=None)
    report = auditor.audit(wait_ms=0)
    assert report.residual_tokens == 6
    raw_redis.delete(redis_keys.open_requests("m1"))
    record(
        database,
        event("stream", (30, 0, 103), Ending.ENGINE_DIED, source=UsageSource.CHECKPOINT),
        event("whole", (0, 0, 0), Ending.ENGINE_DIED, source=UsageSource.UNREAD, stream=False),
        event("after", (5, 0, 2), Ending.ENGINE_DIED, source=UsageSource.CHECKPOINT, ended_ms=2**52),
    )
    report = auditor.audit(wait_ms=30_000)
    assert report.residual_tokens == 6
    assert list(found(report, FindingKind.REQUEST_UNKNOWN)[0].ids) == ["dropped"]
    (lost,) = found(report, FindingKind.COUNTER_LOST)
    assert lost.tokens == CounterPair(5, 3 + 2)
    assert report.instances[0].metered.absorbed == CounterPair(30 + 40 + 5, 103 + 55 + 2)
    # An hour later everything has come: the figures stand as they are, and nothing is looked up any more.
    with database.begin() as connection:
        connection.execute(
            update(engine_counter).values(
                requests=text(
                    "jsonb_set(requests, '{at_ms}', to_jsonb((requests->>'at_ms')::bigint - 7200000))"
                )
            )
        )
    later = auditor.audit(wait_ms=30_000)
    assert (later.residual_tokens, later.instances[0].produced) == (6, report.instances[0].produced)


def test_an_engine_that_stands_still_is_judged_by_what_it_said_last(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.live = {"open": (30, 100)}
    reserve(raw_redis, "open", lease_ms=60_000)
    poller.poll_once()
    engine.live["open"] = (30, 200)
    engine.status = 500
    report = auditor.audit(wait_ms=0)
    assert report.residual_tokens == 0
    assert report.instances[0].metered.open == CounterPair(30, 100)


def test_an_engine_that_started_anew_counts_from_the_beginning(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.ended = {"first": (10, 5), "second": (10, 5)}
    record(database, event("first", (10, 0, 5)), event("second", (10, 0, 5)))
    poller.poll_once()
    engine.boot, engine.ended = "boot-2", {"third": (4, 4)}
    record(database, event("third", (4, 0, 4)))
    report = auditor.audit(wait_ms=0)
    assert (report.residual_tokens, report.instances[0].produced) == (0, CounterPair(24, 14))


def test_an_engine_that_was_added_late_is_held_for_what_it_has_done_since(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.forgotten, engine.ended = (500, 600), {"req_1": (10, 5)}
    register(raw_redis, engine, counts=True, baseline={"prompt": 500, "generation": 600})
    record(database, event("req_1", (10, 0, 5)))
    report = auditor.audit(wait_ms=0)
    assert (report.residual_tokens, report.instances[0].produced) == (0, CounterPair(10, 5))


@pytest.mark.parametrize("instance", ["i1", "i2"])
def test_what_an_engine_had_done_before_it_was_added_again_is_accounted_once(
    database: Engine,
    raw_redis: redis.Redis,
    poller: CounterPoller,
    auditor: Auditor,
    engine: ScriptedEngine,
    instance: str,
) -> None:
    """It was not started anew, so it still speaks of what it did under its last epoch, or under another
    name.
    """
    done, died = (
        event("done", (10, 0, 5)),
        event("died", (3, 0, 1), Ending.GATEWAY_DIED, source=UsageSource.CHECKPOINT),
    )
    engine.ended = {"done": (10, 5), "died": (4, 9), "calibration-1": (20, 7)}
    record(database, done, died)
    assert auditor.audit(wait_ms=0).residual_tokens == 0
    before = next(each for each in poller.poll_once().registry.instances if each.instance == "i1")
    with database.begin() as connection:
        close_run(connection, before, read_instance(httpx.Client(), before))
    raw_redis.delete(redis_keys.INSTANCES)
    register(
        raw_redis, engine, instance, epoch="e1+1", counts=True, baseline={"prompt": 34, "generation": 21}
    )
    engine.ended |= {"after": (5, 6), "calibration-2": (1, 1)}
    record(database, event("after", (5, 0, 6), instance=instance, epoch="e1+1"))
    report = auditor.audit(wait_ms=0)
    assert (report.residual_tokens, report.findings) == (0, ())
    metered = [each.metered for each in report.instances]
    assert sum(each.absorbed.generation for each in metered) == 9 + 7 + 1


def test_what_an_engine_did_unseen_before_it_died_is_told_from_what_its_next_start_does(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, auditor: Auditor, engine: ScriptedEngine
) -> None:
    def now_ms() -> int:
        seconds, microseconds = raw_redis.time()
        return seconds * 1000 + microseconds // 1000

    def cut(name: str, tokens: tuple[int, int, int]) -> UsageEvent:
        source = UsageSource.CHECKPOINT
        return event(name, tokens, Ending.ENGINE_DIED, source=source, started_ms=began, ended_ms=now_ms())

    def ended(name: str, tokens: tuple[int, int, int], started_ms: int | None = None) -> UsageEvent:
        now = now_ms()
        return event(name, tokens, started_ms=now if started_ms is None else started_ms, ended_ms=now)

    began = now_ms()
    engine.live = {"cut": (10, 5)}
    reserve(raw_redis, "cut", lease_ms=60_000)
    poller.poll_once()
    raw_redis.delete(redis_keys.open_requests("m1"))
    engine.boot, engine.live, engine.ended = "boot-2", {"moved": (6, 3)}, {"second": (20, 9)}
    record(database, cut("cut", (10, 0, 7)), cut("unseen", (3, 0, 2)), ended("second", (20, 0, 9), began))
    reserve(raw_redis, "moved", lease_ms=60_000)
    poller.poll_once()
    # `late` waited until now, and `third` began just now.
    engine.live, engine.ended = {}, engine.ended | {"moved": (6, 6), "third": (40, 4), "late": (1, 1)}
    record(
        database,
        ended("moved", (6, 0, 6), began),
        ended("third", (40, 0, 4)),
        ended("late", (1, 0, 1), began),
    )
    for _ in range(2):
        report = auditor.audit(wait_ms=30_000)
        assert report.residual_tokens == 0
        (lost,) = found(report, FindingKind.COUNTER_LOST)
        assert lost.tokens == CounterPair(3, 2 + 2)
    engine.boot, engine.ended = "boot-3", {"fourth": (7, 7), "leaked": (1, 1)}
    record(database, ended("fourth", (7, 0, 7)))
    assert auditor.audit(wait_ms=30_000).residual_tokens == 2


def test_a_request_that_ends_while_its_engine_is_asked_is_not_taken_for_one_that_came_later(
    database: Engine, raw_redis: redis.Redis, poller: CounterPoller, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.ended = {"meanwhile": (10, 5)}
    record(database, event("meanwhile", (10, 0, 5), ended_ms=2**52))
    poller.poll_once()
    register(raw_redis, engine, counts=True, status="down", lease_until_ms=2**52, final=None)
    report = auditor.audit(wait_ms=30_000)
    assert (report.residual_tokens, report.instances[0].produced) == (0, CounterPair(10, 5))
