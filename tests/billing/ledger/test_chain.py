"""Chains of hashes: whatever is recorded is in one, and any change to what is stored is found and named."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, select, text

from billing.catalogue.price_book import set_price
from billing.findings import FindingKind
from billing.ledger.absorbed_event import AbsorbedEvent, absorb
from billing.ledger.backfill import Scope, backfill
from billing.ledger.chain import HOUSE, chain_waiting
from billing.ledger.chain_check import check_chains
from billing.ledger.chain_entry import INTERNAL, PUBLIC, parts_of
from billing.ledger.check import check_ledger
from billing.ledger.entries import ReceivedEvent, event_row, record_events
from billing.schema.chain import usage_chain, usage_unchained
from billing.schema.ledger import usage_event
from billing.wire.ending import Ending, OtherReason
from billing.wire.tokens import CounterPair
from billing.wire.usage_event import UsageEvent
from tests.billing.events import WEIGHTS, event


def record(connection: Connection, *events: UsageEvent) -> None:
    record_events(connection, [ReceivedEvent.read(each.to_json()) for each in events])


_GRANT = """
with made as (
  insert into ledger_transaction (kind, subject) values ('grant', 'grt_1') returning transaction_id
)
insert into ledger_posting (transaction_id, line, account, holder, amount_picousd)
select transaction_id, line, account, 'ten_a', amount
from made cross join (values (0, 'credits', -5), (1, 'funds', 5)) as l (line, account, amount)
"""


@pytest.fixture
def books(database: Engine) -> Iterator[Engine]:
    """Two tenants; a price of `m1`, none of `m2` at first; requests of all kinds of pricing, a correction, a
    calibration.
    """
    provider = {"kind": "openai", "model": "gpt", "usage": {"cost": 1e16, "rate": 1.5, "tiny": 2e-7}}
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        record(
            connection,
            event("a1"),
            event("a2", (20, 5, 7)),
            replace(event("b1", tenant="ten_b"), provider=provider),
        )
    with database.begin() as connection:
        record(connection, event("a3", model="m2"), event("a4", ending=Ending.ENGINE_DIED), event("a5"))
        set_price(connection, "m2", input="3", cached_input="1", output="5", valid_from_ms=0)
        backfill(connection, Scope("m2", 0, 10**14), dry_run=False)
        absorb(connection, AbsorbedEvent(
            request_id="rec_1", model="m1", pool="m1", cell="m1", instance="i1", epoch="e1",
            tokens=CounterPair(3, 4), reason=OtherReason.CALIBRATION, ending=Ending.COMPLETE,
            weights={"version": WEIGHTS.version}, started_ms=1,
        ))  # fmt: skip
        connection.exec_driver_sql(_GRANT)
        assert chain_waiting(connection, most=10) == 2
    return database


def links(connection: Connection, chain: str) -> list[Any]:
    query = select(usage_chain).where(usage_chain.c.chain == chain).order_by(usage_chain.c.position)
    return list(connection.execute(query))


def test_every_entry_is_in_the_chain_of_its_tenant_in_the_order_of_recording(books: Engine) -> None:
    with books.connect() as connection:
        assert [row.request_id for row in links(connection, "ten_a")] == ["a1", "a2", "a3", "a4", "a5", "a3"]
        assert [row.position for row in links(connection, "ten_a")] == [1, 2, 3, 4, 5, 6]
        assert [row.request_id for row in links(connection, "ten_b")] == ["b1"]
        assert [row.request_id for row in links(connection, HOUSE)] == ["rec_1", None]
        report = check_chains(connection)
        assert (report.links, report.findings()) == (9, [])
        assert check_ledger(connection) == []


def test_every_column_of_an_event_is_hashed() -> None:
    assert {column.name for column in usage_event.c} == {*PUBLIC, *INTERNAL, "recorded_ms", "day"}


def test_an_event_has_the_digests_that_it_had_when_others_like_it_were_recorded() -> None:
    said = event("r", (20, 5, 7, 3), contract="c", line="b/1", samples=2)
    provider = {"kind": "openai", "model": "g", "usage": {"n": 1.5}}
    full = replace(said, orphan=True, ignored=("seed",), anomaly="a", waited_ms=3, provider=provider)
    parts = parts_of(event_row(replace(full, decision={"why": "x"}), "d", 7), (), "")
    assert (parts.event, parts.internal) == (
        "4a1140780e039cd7c97f9bcaf7ac9849f4553479f5997be9e88b7e3d99c97d47",
        "1785204a075c2a7ade75bce4fb5e5b722ffd5d99469cde538d6e099867d13961",
    )


_EVENT = "not as it was recorded: the usage event of these requests"
_INSIDE = "not as it was recorded: in the usage event of these requests, what its tenant does not see"
_POSTINGS = "not as it was recorded: the postings of these entries"
_PRICE = "not as it was recorded: the prices of these numbers"
_PLACE = (
    "not as it was recorded: its place in the chain, its moment, its pricing or amount, or the link itself"
)
_GONE = "entries of the ledger that are gone, or whose usage event is"
_END = "chains that do not end where they ended: links were removed at the end, or added"
_MISSING = "links that are missing from their chain"
_DELETE_A2 = (
    "delete from ledger_posting where transaction_id in (select transaction_id from ledger_transaction where "
    "request_id = 'a2'); delete from ledger_transaction where request_id = 'a2'; "
    "delete from usage_event where request_id = 'a2'"
)
_UNLINK_A2 = "delete from usage_chain where request_id = 'a2'"
_SWAP = (
    "update usage_chain set position = -1 where chain = 'ten_a' and position = 1; "
    "update usage_chain set position = 1 where chain = 'ten_a' and position = 2; "
    "update usage_chain set position = 2 where chain = 'ten_a' and position = -1"
)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("update usage_event set project = 'prj_x' where request_id = 'a2'", {_EVENT: ("a2",)}),
        ("update usage_event set decision = '[1]' where request_id = 'a1'", {_EVENT: ("a1",)}),
        ("update usage_event set ended_ms = ended_ms + 1 where request_id = 'b1'", {_EVENT: ("b1",)}),
        ("update usage_event set instance = 'i2' where request_id = 'a5'", {_INSIDE: ("a5",)}),
        ("update usage_event set provider = '{}' where request_id = 'b1'", {_INSIDE: ("b1",)}),
        (
            "update usage_event set billed_prompt = 9, absorbed_prompt = 1 where request_id = 'a1'",
            {_EVENT: ("a1",)},
        ),
        ("update usage_event set absorbed_output = 0, produced_output = 0 where request_id = 'rec_1'",
         {_EVENT: ("rec_1",)}),
        (
            "update ledger_posting set amount_picousd = amount_picousd * 2 where transaction_id = (select "
            "transaction_id from ledger_transaction where request_id = 'a2')",
            {_POSTINGS: ("a2",)},
        ),
        ("update ledger_posting set holder = 'm9' where account = 'revenue' and transaction_id = (select "
         "transaction_id from ledger_transaction where request_id = 'a5')", {_POSTINGS: ("a5",)}),
        ("update ledger_posting set amount_picousd = 6 where account = 'funds'",
         {_POSTINGS: ("grant grt_1",)}),
        ("update ledger_transaction set subject = 'grt_2' where kind = 'grant'",
         {_PLACE: ("grant grt_2 ((no tenant) 2)",)}),
        ("update price set class = 'flex' where model = 'm2'", {_PRICE: ("price 2",)}),
        ("update price set cache_write_picousd = 7 where model = 'm2'", {_PRICE: ("price 2",)}),
        ("update price set valid_from_ms = 1 where model = 'm1'", {_PRICE: ("price 1",)}),
        ("update ledger_transaction set recorded_ms = 1 where request_id = 'a5'",
         {_PLACE: ("a5 (ten_a 5)",)}),
        ("update ledger_transaction set pricing = 'quarantined' where request_id = 'a4'",
         {_PLACE: ("a4 (ten_a 4)",)}),
        ("update usage_chain set hash = sha256('x') where request_id = 'a2'", {_PLACE: ("a2 (ten_a 2)",)}),
        ("update usage_chain set chained_ms = 1 where request_id = 'a2'", {_PLACE: ("a2 (ten_a 2)",)}),
        ("update usage_chain set request_id = 'a9' where request_id = 'a2'", {_PLACE: ("a9 (ten_a 2)",)}),
        ("update usage_chain set parts = sha256('x') where request_id = 'b1'",
         {_EVENT: ("b1",), _INSIDE: ("b1",), _POSTINGS: ("b1",), _PRICE: ("price 1",)}),
        (_SWAP, {_PLACE: ("a2 (ten_a 1)", "a1 (ten_a 2)", "a3 (ten_a 3)")}),
        (_DELETE_A2, {_GONE: ("a2",)}),
        (f"{_DELETE_A2}; {_UNLINK_A2}", {_MISSING: ("ten_a 2–2",)}),
        ("delete from usage_chain where chain = 'ten_a' and position = 6",
         {_END: ("ten_a 6",), "entries that are in no chain": ("a3",)}),
        ("update usage_chain_head set hash = sha256('x') where chain = 'ten_b'", {_END: ("ten_b 1",)}),
    ],
)  # fmt: skip
def test_what_was_changed_is_named(books: Engine, change: str, found: dict[str, tuple[str, ...]]) -> None:
    """As somebody would who owns the database: its triggers are off."""
    with books.begin() as connection:
        connection.execute(text("set local session_replication_role = replica"))
        connection.exec_driver_sql(change)
    with books.connect() as connection:
        findings = check_chains(connection).findings()
        assert {finding.message: finding.ids for finding in findings} == found
        assert {finding.kind for finding in check_ledger(connection)} >= {FindingKind.CHAIN_BROKEN}


def test_what_an_earlier_version_records_is_chained_later(books: Engine) -> None:
    with books.begin() as connection:
        connection.execute(text("set local session_replication_role = replica"))
        connection.execute(text("delete from usage_chain"))
        connection.execute(text("delete from usage_chain_head"))
        connection.execute(text("insert into usage_unchained select transaction_id from ledger_transaction"))
    with books.begin() as connection:
        while chain_waiting(connection, most=2):
            pass
    with books.begin() as connection:
        assert connection.execute(select(usage_unchained)).all() == []
        assert [row.request_id for row in links(connection, "ten_a")] == ["a1", "a2", "a3", "a4", "a5", "a3"]
        assert (check_chains(connection).links, check_chains(connection).findings()) == (9, [])
        record(connection, event("a6"), event("b2", tenant="ten_b"))
        assert check_chains(connection).findings() == []


def test_two_consumers_that_record_for_one_tenant_make_one_chain(database: Engine) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for batch in range(10):
                with database.begin() as connection:
                    both = [event(f"r{number}_{batch}_{of}", tenant=of) for of in ("ten_b", "ten_a")]
                    record(connection, *(both if number else reversed(both)))
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    with database.connect() as connection:
        report = check_chains(connection)
        assert (report.links, report.findings()) == (60, [])
        assert [row.position for row in links(connection, "ten_a")] == list(range(1, 31))
