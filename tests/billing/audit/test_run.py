"""The audit: every token that an engine counted is billed, absorbed or open, and what is not is told,
never hidden.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.event import listen

from billing.audit import finding_rows
from billing.audit.balance_rows import list_page
from billing.audit.engine_counters import CounterPoller
from billing.audit.report import AuditReport
from billing.audit.run import Auditor, Facts
from billing.catalogue.price_book import set_price
from billing.findings import Finding, FindingKind
from billing.ledger.check import set_aside
from billing.ledger.entries import ReceivedEvent, record_events
from billing.metrics import BillingMetrics
from billing.moments import HOUR_MS
from billing.page import PageRequest
from billing.schema.catalogue import model as model_table
from billing.schema.ledger import NOT_FINAL, ledger_transaction, usage_event, usage_total
from billing.usage.consumer import Consumer
from billing.usage.reap import Reaper
from billing.wire import redis_keys
from billing.wire.ending import Ending
from billing.wire.tokens import CounterPair
from billing.wire.usage_event import UsageEvent, UsageSource
from tests.billing.engine_server import ScriptedEngine, register, serve
from tests.billing.events import event
from tests.billing.usage.test_reap import lapse, reserve


@pytest.fixture
def auditor(database: Engine, raw_redis: redis.Redis) -> Iterator[Auditor]:
    with database.begin() as connection:
        connection.execute(
            insert(model_table).values(
                name="m1", pool="m1", cell="m1", visible="everyone", routes=["chat"], engine_model="m1",
                context_tokens=1000, default_max_tokens=100, weights_version=1, chat_template_kwargs=[],
            )
        )  # fmt: skip
        set_price(connection, "m1", input="1", cached_input="1", output="1", valid_from_ms=0)
    poller = CounterPoller(database, raw_redis, timeout_ms=2000)
    yield Auditor(database, raw_redis, poller)
    poller.close()


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    with serve(ScriptedEngine()) as made:
        yield made


def record(database: Engine, *events: UsageEvent) -> None:
    with database.begin() as connection:
        record_events(connection, [ReceivedEvent.read(item.to_json()) for item in events])


def consume(database: Engine, client: redis.Redis) -> None:
    Consumer(database, client, name="c", batch=500, claim_idle_ms=0, metrics=BillingMetrics()).consume_once()


def found(report: AuditReport, kind: FindingKind) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind is kind]


def died(request_id: str, tokens: tuple[int, int, int], **changes: object) -> UsageEvent:
    return event(request_id, tokens, Ending.GATEWAY_DIED, source=UsageSource.CHECKPOINT, **changes)


def test_billed_absorbed_and_open_add_up_to_what_the_engine_counted(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.prompt, engine.generation, engine.running = 500 + 10 + 20 + 30, 500 + 1 + 2 + 3, 1
    register(raw_redis, engine, baseline={"prompt": 500, "generation": 500})
    record(database, event("a", (10, 5, 1)), event("b", (20, 0, 2), Ending.ENGINE_DIED))
    reserve(raw_redis, "c", lease_ms=60_000, tokens=(30, 0, 3))
    report = auditor.audit(wait_ms=0)
    assert replace(report, head=None).to_json() == {
        "checked": "all",
        "instances": [
            {
                "instance": "i1",
                "produced": {"prompt": 60, "generation": 6},
                "billed": {"prompt": 10, "generation": 1},
                "absorbed": {"prompt": 20, "generation": 2},
                "open": {"prompt": 30, "generation": 3},
                "residual": {"prompt": 0, "generation": 0},
                "counters": True,
            }
        ],
        "residual_tokens": 0,
        "findings": [],
    }


def test_a_residual_of_either_sign_is_told_and_neither_cancels_the_other(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.prompt, engine.generation = 15, 5
    register(raw_redis, engine)
    with serve(ScriptedEngine(prompt=10, generation=2)) as other:
        register(raw_redis, other, "i2")
        record(database, event("a", (10, 0, 5)), event("b", (10, 0, 5), instance="i2"))
        report = auditor.audit(wait_ms=1000)
        with database.connect() as connection:
            asked = {"instance": None, "from_ms": None, "until_ms": None, "residual": True}
            noted = list_page(connection, PageRequest(9), **asked).rows
    assert [each.residual for each in report.instances] == [CounterPair(5, 0), CounterPair(0, -3)]
    assert report.residual_tokens == 8
    assert {each.instance: each.residual for each in noted} == {
        each.instance: each.residual for each in report.instances
    }
    told = found(report, FindingKind.RESIDUAL)
    assert [each.since_ms for each in told] == [each.minute * 60_000 for each in noted]


def test_samples_share_a_prompt_that_the_engine_counts_each_time(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.prompt, engine.generation = 390, 30
    register(raw_redis, engine)
    record(database, event("a", (130, 0, 30), samples=3))
    report = auditor.audit(wait_ms=0)
    assert report.residual_tokens == 0
    assert report.instances[0].metered.absorbed == CounterPair(260, 0)


def test_usage_still_in_a_stream_counts_as_open(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine)
    engine.prompt, engine.generation = 10, 5
    raw_redis.xadd(redis_keys.usage_stream("m1"), {redis_keys.USAGE_FIELD: event("a", (10, 0, 5)).to_json()})
    report = auditor.audit(wait_ms=0)
    assert (report.residual_tokens, report.instances[0].metered.open) == (0, CounterPair(10, 5))
    with database.connect() as connection:
        (row,) = list_page(
            connection, PageRequest(9), instance="i1", from_ms=None, until_ms=None, residual=False
        ).rows
    assert (row.state.counters, row.state.running, row.state.waiting) == ("read", 0, 1)
    assert 0 <= row.state.lag_ms < 60_000
    assert row.metered.open == CounterPair(10, 5)


def test_a_request_that_runs_explains_what_it_can_have_produced_and_no_more(
    raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine)
    reserve(raw_redis, "a", lease_ms=60_000, tokens=(10, 0, 3))
    engine.prompt, engine.generation, engine.running = 10, 900, 1
    assert auditor.audit(wait_ms=0).residual_tokens == 0
    engine.generation = 1001
    assert auditor.audit(wait_ms=0).residual_tokens == 1


def test_a_crash_between_the_last_poll_and_the_end_is_told_as_lost_counters(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine, epoch="e1")
    engine.prompt, engine.generation = 10, 1
    auditor.audit(wait_ms=0)
    record(
        database,
        event("a", (10, 0, 1)),
        event("b", (10, 0, 4), Ending.ENGINE_DIED),
        event("c", (7, 0, 2), epoch="e2"),
    )
    engine.prompt, engine.generation = 7, 2
    register(raw_redis, engine, epoch="e2")
    report = auditor.audit(wait_ms=0)
    assert report.residual_tokens == 0
    assert report.instances[0].produced == CounterPair(27, 7)
    (lost,) = found(report, FindingKind.COUNTER_LOST)
    assert (lost.epoch, lost.tokens) == ("e1", CounterPair(10, 4))
    assert lost.to_json()["counter_lost"] is True


def test_more_metered_than_the_exact_last_counters_is_a_residual_not_a_loss(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    final = {
        "epoch": "e0",
        "prompt": 10,
        "generation": 1,
        "baseline": {"prompt": 0, "generation": 0},
        "exact": True,
    }
    register(raw_redis, engine, epoch="e1", earlier=[final])
    record(database, event("a", (10, 0, 4), epoch="e0"))
    report = auditor.audit(wait_ms=0)
    assert report.instances[0].residual == CounterPair(0, -3)
    assert not found(report, FindingKind.COUNTER_LOST)


def test_a_provider_without_counters_is_named_and_leaves_no_residual(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    engine.status = 404
    register(raw_redis, engine)
    record(database, event("a", (10, 0, 5)))
    report = auditor.audit(wait_ms=0)
    assert report.residual_tokens == 0
    assert report.instances[0].to_json()["counters"] is False
    assert found(report, FindingKind.NO_COUNTERS)


def test_another_providers_api_is_not_asked_and_nothing_is_missed(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine, engine="openai")
    record(database, event("a", (10, 0, 5)))
    report = auditor.audit(wait_ms=0)
    assert engine.asked == []
    assert (report.residual_tokens, report.instances[0].to_json()["counters"]) == (0, False)
    assert report.findings == ()


def test_what_a_dead_gateways_requests_produced_after_the_last_checkpoint_is_absorbed(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    # Of two requests of a dead gateway one had a checkpoint; the engine went on until it noticed.
    register(raw_redis, engine)
    reserve(raw_redis, "a", lease_ms=60_000, tokens=(10, 0, 7))
    reserve(raw_redis, "b", lease_ms=60_000)
    lapse(raw_redis, "a")
    lapse(raw_redis, "b")
    engine.prompt, engine.generation = 10 + 12, 7 + 5
    Reaper(raw_redis, BillingMetrics()).reap_once()
    consume(database, raw_redis)
    report = auditor.audit(wait_ms=5000)
    assert report.residual_tokens == 0
    assert report.instances[0].metered.absorbed == CounterPair(22, 12)
    (reconciled,) = found(report, FindingKind.RECONCILED)
    assert (reconciled.tokens, list(reconciled.ids)) == (CounterPair(12, 5), ["a", "b"])
    with database.connect() as connection:
        row = (
            connection.execute(select(usage_event).where(usage_event.c.kind == "reconciliation"))
            .mappings()
            .one()
        )
        pricing = select(ledger_transaction.c.pricing).where(
            ledger_transaction.c.request_id == row["request_id"]
        )
        assert connection.execute(pricing).scalar_one() == "nothing_billed"
    assert row["request_id"].startswith("rec_")
    assert row["evidence"] == {"requests": ["a", "b"]}
    assert (row["ending"], row["tenant"], row["billed_output"]) == ("gateway_died", None, 0)
    # Once: what the engine counts later is not explained by the same dead gateway.
    engine.generation += 3
    assert auditor.audit(wait_ms=2000).residual_tokens == 3


def test_what_a_dead_engine_had_counted_for_an_answer_it_never_gave_is_absorbed(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine)
    engine.prompt, engine.generation = 10 + 30, 5 + 25
    auditor.audit(wait_ms=0)
    whole = event("b", (0, 0, 0), Ending.ENGINE_DIED, source=UsageSource.UNREAD, stream=False)
    record(database, event("a", (10, 0, 5)), whole)
    register(raw_redis, engine, status="down")
    report = auditor.audit(wait_ms=5000)
    assert report.residual_tokens == 0
    (reconciled,) = found(report, FindingKind.RECONCILED)
    assert (reconciled.tokens, list(reconciled.ids)) == (CounterPair(30, 25), ["b"])
    with database.connect() as connection:
        row = (
            connection.execute(select(usage_event).where(usage_event.c.kind == "reconciliation"))
            .mappings()
            .one()
        )
    assert (row["ending"], row["billed_output"]) == ("engine_died", 0)
    assert row["absorbed_reasons"] == {"engine_died": {"prompt": 30, "output": 25}}


@pytest.mark.parametrize("ending", [Ending.CLIENT_DISCONNECT, Ending.REFUSED_BY_ENGINE, Ending.OPERATOR_STOP])
def test_an_ending_without_the_engines_last_word_explains_what_it_had_produced(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine, ending: Ending
) -> None:
    register(raw_redis, engine)
    engine.prompt, engine.generation = 30, 25
    record(database, event("a", (0, 0, 0), ending, source=UsageSource.UNREAD, stream=False))
    report = auditor.audit(wait_ms=30_000)
    assert (report.residual_tokens, report.instances[0].metered.absorbed) == (0, CounterPair(30, 25))
    with database.connect() as connection:
        row = (
            connection.execute(select(usage_event).where(usage_event.c.kind == "reconciliation"))
            .mappings()
            .one()
        )
    assert row["absorbed_reasons"] == {"unread": {"prompt": 30, "output": 25}}


def test_a_residual_without_a_dead_gateway_is_not_absorbed(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine)
    engine.prompt, engine.generation = 10, 9
    record(database, event("a", (10, 0, 5)))
    assert auditor.audit(wait_ms=2000).residual_tokens == 4
    with database.connect() as connection:
        assert connection.execute(select(func.count()).select_from(usage_event)).scalar_one() == 1


@pytest.mark.parametrize("busy", ["running", "open", "stream"])
def test_nothing_is_absorbed_while_anything_is_under_way(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine, busy: str
) -> None:
    register(raw_redis, engine)
    engine.prompt, engine.generation = 10, 9
    record(database, died("a", (10, 0, 5)))
    if busy == "running":
        engine.running = 1
    elif busy == "open":
        reserve(raw_redis, "b", lease_ms=60_000)
    else:
        raw_redis.xadd(redis_keys.usage_stream("m1"), {redis_keys.USAGE_FIELD: event("c").to_json()})
    assert auditor.audit(wait_ms=1500).instances[0].metered.absorbed == CounterPair(10, 5)


def test_a_dead_gateway_that_left_nothing_open_explains_nothing_later(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine)
    engine.prompt, engine.generation = 10, 5
    record(database, died("a", (10, 0, 5)))
    assert auditor.audit(wait_ms=2000).residual_tokens == 0
    engine.generation += 3
    assert auditor.audit(wait_ms=2000).residual_tokens == 3


def test_no_more_is_absorbed_than_the_dead_requests_could_have_produced(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine)
    record(database, died("a", (10, 0, 5)))
    engine.prompt, engine.generation = 10, 5000
    report = auditor.audit(wait_ms=2000)
    assert report.instances[0].metered.absorbed == CounterPair(10, 1000)
    assert report.instances[0].residual == CounterPair(0, 4000)


def test_a_negative_residual_is_never_reconciled_away(
    database: Engine, raw_redis: redis.Redis, auditor: Auditor, engine: ScriptedEngine
) -> None:
    register(raw_redis, engine)
    record(database, died("a", (10, 0, 5)))
    engine.prompt, engine.generation = 9, 8
    assert auditor.audit(wait_ms=2000).instances[0].residual == CounterPair(-1, 3)


def test_what_waits_for_a_person_is_found(database: Engine, raw_redis: redis.Redis, auditor: Auditor) -> None:
    raw_redis.sadd(redis_keys.CELLS, "m1")
    bodies = [b"{", event("a").to_json(), event("a", (10, 0, 6)).to_json(), event("b",
    model="other").to_json(),
              event("c", anomaly="usage_missing").to_json()]  # fmt: skip
    for body in bodies:
        raw_redis.xadd(redis_keys.usage_stream("m1"), {redis_keys.USAGE_FIELD: body})
    consume(database, raw_redis)
    report = auditor.audit(wait_ms=0)
    kinds = {finding.kind: finding for finding in report.findings}
    for kind, ids in {
        FindingKind.USAGE_CONFLICT: ["a"], FindingKind.UNPRICED: ["b"], FindingKind.QUARANTINED: ["c"],
    }.items():  # fmt: skip
        assert (kinds[kind].count, list(kinds[kind].ids)) == (1, ids)
    assert kinds[FindingKind.USAGE_REJECTED].count == 1


def test_what_waits_for_a_person_is_found_without_reading_the_whole_ledger(database: Engine) -> None:
    with database.begin() as connection:
        set_price(connection, "m1", input="0.10", cached_input="0.01", output="0.40", valid_from_ms=0)
    record(
        database,
        *(event(f"r{number}", anomaly="usage_missing" if number == 7 else None) for number in range(200)),
    )
    asked: list[str] = []
    with database.begin() as connection:
        connection.execute(text("analyze ledger_transaction"))
        connection.execute(text("set local enable_seqscan = off"))
        listen(connection, "before_cursor_execute", lambda *seen: asked.append(seen[2]))
        (quarantined,) = (each for each in set_aside(connection) if each.kind is FindingKind.QUARANTINED)
        of_the_ledger = [statement for statement in asked if "from ledger_transaction" in statement]
        plans = [
            "\n".join(connection.exec_driver_sql(f"explain {statement}").scalars())
            for statement in of_the_ledger
        ]
    assert quarantined.ids == ("r7",)
    assert len(plans) == 2
    assert all("ix_ledger_transaction_no_amount" in plan for plan in plans), plans


def test_requests_without_a_final_count_are_found_by_their_index(database: Engine) -> None:
    """The migrated index has the condition that the code asks with, or it could not serve it."""
    query = select(usage_event).where(NOT_FINAL)
    statement = query.compile(dialect=database.dialect, compile_kwargs={"literal_binds": True})
    with database.begin() as connection:
        connection.execute(text("analyze usage_event"))
        connection.execute(text("set local enable_seqscan = off"))
        plan = connection.exec_driver_sql(f"explain {statement}").scalars()
        assert "ix_usage_event_not_final" in "".join(plan)


def test_a_ledger_that_was_tampered_with_is_found(database: Engine, auditor: Auditor) -> None:
    record(database, event("a"), event("b"), event("c"))
    with database.begin() as connection:
        # No triggers: as a superuser could.
        connection.execute(text("set local session_replication_role = replica"))
        connection.execute(text(
            "update ledger_posting set amount_picousd = amount_picousd + 1 where account = 'receivable' and "
            "transaction_id ="
            " (select transaction_id from ledger_transaction where request_id = 'a')"
        ))  # fmt: skip
        connection.execute(text("insert into usage_event select * from usage_event where false"))
        connection.execute(usage_total.update().values(billed_prompt=usage_total.c.billed_prompt + 1))
        connection.execute(text(
            "delete from ledger_posting where transaction_id = (select transaction_id from "
            "ledger_transaction where request_id = 'b')"
        ))  # fmt: skip
        connection.execute(text("delete from ledger_transaction where request_id = 'b'"))
    kinds: dict[FindingKind, list[str]] = {}
    for finding in auditor.audit(wait_ms=0).findings:
        kinds.setdefault(finding.kind, []).extend(finding.ids)
    assert kinds[FindingKind.LEDGER_MISPRICED] == ["a"]
    assert len(kinds[FindingKind.LEDGER_UNBALANCED]) == 1
    assert kinds[FindingKind.LEDGER_INCOMPLETE] == ["b"]
    hour = event("a").ended_ms // HOUR_MS
    assert kinds[FindingKind.TOTALS_DIFFER] == ["i1 e1", f"ten_a {hour}", "receivable ten_a", "revenue m1"]


def test_a_periodic_audit_checks_what_is_new_and_others_what_is_not_signed_or_everything(
    database: Engine, auditor: Auditor
) -> None:
    def alter(request_id: str) -> None:
        with database.begin() as connection:
            connection.execute(text("set local session_replication_role = replica"))
            same = usage_event.c.request_id == request_id
            connection.execute(usage_event.update().where(same).values(http_status=500))

    def named(facts: Facts) -> list[str]:
        broken = found(auditor.audit(wait_ms=0, facts=facts), FindingKind.CHAIN_BROKEN)
        return [name for finding in broken for name in finding.ids]

    record(database, event("a"))
    assert named(Facts.NEW) == []
    alter("a")
    assert (named(Facts.NEW), named(Facts.SINCE_CHECKPOINT), named(Facts.ALL)) == ([], ["a"], ["a"])
    record(database, event("b"))
    alter("b")
    assert (named(Facts.NEW), named(Facts.NEW)) == (["b"], [])
    # What only a reading of everything could see gone stays a finding.
    with database.connect() as connection:
        rows = finding_rows.list_page(connection, PageRequest(9), state=None, kind=None, gone=False).rows
    assert [row.kind for row in rows if row.kind != "counter_lost"] == ["chain_broken"]
