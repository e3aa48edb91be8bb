"""Retention: whole days are dropped once they are final, and everything else goes on adding up."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace
from sqlalchemy import Engine, insert, text

from billing.audit import finding_rows
from billing.catalogue import models, tenants
from billing.catalogue.models import ModelSpec
from billing.catalogue.price_book import set_price
from billing.catalogue.tenants import Tenant
from billing.exports import sinks
from billing.exports.recorded import Form
from billing.findings import Finding, FindingKind
from billing.invoices.books import close_books
from billing.invoices.check import check_invoices
from billing.invoices.close import close, compute_again
from billing.invoices.periods import next_name, period
from billing.ledger import retention
from billing.ledger.backfill import Scope, backfill
from billing.ledger.chain import chain_waiting
from billing.ledger.check import check_ledger, set_aside
from billing.ledger.checkpoints import end_days, sign_days
from billing.ledger.entries import ReceivedEvent, Recorded, record_events
from billing.ledger.receipt import find_receipt
from billing.ledger.usage_export import export_usage, span_of
from billing.ledger.usage_report import report_usage
from billing.moments import DAY_MS
from billing.refusals import Conflict, Invalid, NotFound
from billing.schema.ledger import engine_counter
from billing.wire.dimensions import Dimension
from billing.wire.ending import Ending
from billing.wire.evidence import make_key, public_pem, read_private_key
from billing.wire.usage_event import UsageSource
from deploy.taas_verify import verify
from tests.billing.events import event

KEY = read_private_key(make_key())
KEPT = 35


class House:
    """Two tenants with requests of one day, two months ago, and of the day after."""

    def __init__(self, database: Engine, client: redis.Redis) -> None:
        self.database = database
        self.client = client
        self.days_back = 9
        self.now_ms = int(time.time() * 1000)
        month = datetime.fromtimestamp((self.now_ms - 70 * DAY_MS) / 1000, UTC).strftime("%Y-%m")
        self.month, starts_ms = month, period(month, 1, "UTC")[0]
        self.day = starts_ms // DAY_MS + 14
        with database.begin() as connection:
            models.create(connection, ModelSpec(name="m1", context_tokens=4096))
            set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
            self.tenants = [tenants.create(connection, name) for name in ("acme", "other")]
            self.project = "prj"
        for number, tenant in enumerate(self.tenants):
            self.use(f"first_{number}", tenant, self.day)
            self.use(f"next_{number}", tenant, self.day + 1)
        self.use("died", self.tenants[0], self.day, ending=Ending.ENGINE_DIED)

    def use(self, request_id: str, tenant: Tenant, day: int, **changes: Any) -> Recorded:
        moment = day * DAY_MS + 3_600_000
        provider = changes.pop("provider", None)
        made = event(request_id, tenant=tenant.tenant_id, started_ms=moment, ended_ms=moment, **changes)
        made = replace(made, provider=provider)
        with self.database.begin() as connection:
            return record_events(connection, [ReceivedEvent.read(made.to_json())])

    def sign(self) -> None:
        """As if the day of recording were over."""
        with self.database.begin() as connection:
            while chain_waiting(connection, most=100):
                pass
            move = text("update usage_chain_head set chained_ms = chained_ms + :ms")
            connection.execute(move, {"ms": -self.days_back * DAY_MS})
            end_days(connection)
            connection.execute(move, {"ms": self.days_back * DAY_MS})
            self.days_back -= 1
            while sign_days(connection, KEY):
                pass

    def invoice(self) -> list[str]:
        with self.database.begin() as connection:
            return [
                close(
                    connection, self.client, tenant, self.month, issuer="us", key=KEY, now_ms=self.now_ms
                ).number
                for tenant in self.tenants
            ]

    def close_books(self) -> None:
        with self.database.begin() as connection:
            close_books(connection, self.month, now_ms=self.now_ms)

    def blocked(self) -> str:
        with self.database.connect() as connection:
            (found, *_) = retention.due(connection, KEPT, most=1)
        return "; ".join(found.blocked)

    def resolve(self, kind: str) -> None:
        """A finding of this kind, for a reason."""
        with self.database.begin() as connection:
            if kind == "quarantined":
                finding_rows.keep(connection, set_aside(connection), facts=False)
            there = connection.execute(
                text("select finding_id from finding where kind = :kind"), {"kind": kind}
            )
            finding_rows.change(connection, there.scalar_one(), resolve="looked at")

    def ledger_findings(self) -> list[Finding]:
        with self.database.connect() as connection:
            return check_ledger(connection)

    def differences(self) -> list[Any]:
        with self.database.connect() as connection:
            return [*check_ledger(connection), *check_invoices(connection)]


@pytest.fixture
def house(database: Engine, raw_redis: redis.Redis) -> House:
    return House(database, raw_redis)


def test_a_day_is_kept_until_all_of_it_is_final(house: House) -> None:
    with house.database.begin() as connection:
        sink = sinks.create(connection, "http://127.0.0.1:9/", Form.CLOUDEVENTS, from_ms=0)
    house.use("unpriced", house.tenants[1], house.day, model="m2")
    assert "not signed" in house.blocked()
    house.sign()
    assert "no invoice covers it" in house.blocked()
    house.invoice()
    assert "books of its month" in house.blocked()
    house.close_books()
    assert "1 requests have no amount" in house.blocked()
    with house.database.begin() as connection:
        set_price(connection, "m2", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        backfill(connection, Scope("m2", 0, 10**14), dry_run=False)
    assert "late usage is on no invoice yet" in house.blocked()
    with pytest.raises(Conflict, match="late usage"):
        retention.drop(house.database, house.day)
    month = next_name(house.month)
    house.month = month
    house.sign()
    house.invoice()
    house.close_books()
    assert house.blocked() == "; ".join(
        f"{tenant.tenant_id}: sink {sink.sink_id} has not taken it"
        for tenant in sorted(house.tenants, key=lambda each: each.tenant_id)
    )
    with house.database.begin() as connection:
        sinks.remove(connection, sink.sink_id)
    assert house.blocked() == ""
    assert retention.drop(house.database, house.day).events == 4
    assert house.differences() == []


def test_what_was_dropped_is_proved_and_said(house: House, tmp_path: Path) -> None:
    provider = {"kind": "openai", "model": "gpt", "usage": None}
    house.use("at_provider", house.tenants[0], house.day, provider=provider)
    house.sign()
    numbers = house.invoice()
    house.close_books()
    acme = house.tenants[0]
    with house.database.connect() as connection:
        before = report_usage(connection, tenant=None, by=[Dimension.TENANT, Dimension.HOUR]).to_json()
    made = retention.drop(house.database, house.day)
    assert (made.events, made.kept) == (3, 1)
    assert house.differences() == []
    with house.database.connect() as connection:
        after = report_usage(connection, tenant=None, by=[Dimension.TENANT, Dimension.HOUR]).to_json()
        assert after == before
        with pytest.raises(Invalid, match="dropped by retention"):
            report_usage(connection, tenant=None, from_ms=house.day * DAY_MS + 1)
        with pytest.raises(NotFound, match="dropped by retention"):
            find_receipt(connection, house.client, "first_0")
        assert find_receipt(connection, house.client, "first_0", tenant="ten_other") is None
        assert find_receipt(connection, house.client, "at_provider") is not None
        assert find_receipt(connection, house.client, "next_0") is not None
        with pytest.raises(Invalid, match="cannot be computed again"):
            compute_again(connection, numbers[0])
        with pytest.raises(Invalid, match="dropped by retention"):
            sinks.create(connection, "http://127.0.0.1:9/", Form.LAGO, from_ms=0)
        lines = list(export_usage(connection, acme, span_of(connection, acme.tenant_id, 0, 10**14), KEY))
    public = tmp_path / "key.pub"
    public.write_text(public_pem(KEY))
    export = tmp_path / "export"
    export.write_bytes(b"".join(lines))
    found = verify(export, public).report
    assert found.differences == []
    assert found.checked["entries without their event (dropped by retention)"] == 1
    assert any("retention has dropped" in note for note in found.notes)
    # Another event in the place of one that was dropped is found.
    forged = [json.loads(line) for line in lines]
    for record in forged:
        if "dropped" in record:
            record["dropped"]["event"] = "0" * 64
    export.write_text("\n".join(json.dumps(record) for record in forged))
    assert any("its event part" in each for each in verify(export, public).report.differences)


def test_postings_of_a_dropped_day_that_were_changed_are_found(house: House) -> None:
    """Both of a request, so that they are in balance. Its event is gone, and the hours say what it was."""
    house.sign()
    house.invoice()
    house.close_books()
    retention.drop(house.database, house.day)
    with house.database.begin() as connection:
        connection.execute(text("set local session_replication_role = replica"))
        connection.execute(
            text("""
                update ledger_posting set amount_picousd = 2 * amount_picousd where transaction_id = (
                  select transaction_id from ledger_transaction where request_id = 'first_0')
            """)
        )
    found = {each.message: each.ids for each in house.ledger_findings()}
    acme = house.tenants[0].tenant_id
    assert found["accounts of requests that are not the sums of their hours"] == (
        f"receivable {acme}", "revenue m1",
    )  # fmt: skip


def test_a_request_of_a_dropped_day_that_comes_again_is_billed_once(house: House) -> None:
    house.sign()
    house.invoice()
    house.close_books()
    retention.drop(house.database, house.day)
    again = house.use("first_0", house.tenants[0], house.day)
    assert (again.events, again.duplicates) == ((), 1)
    # A new one of that day is recorded, and the day is dropped once more when it is final.
    assert len(house.use("late", house.tenants[0], house.day).events) == 1
    assert house.differences() == []
    assert "no invoice yet" in house.blocked()


def test_days_that_stay_do_not_keep_later_ones(house: House) -> None:
    """Of requests at providers, and of one whose usage is in doubt."""
    acme = house.tenants[0]
    provider = {"kind": "openai", "model": "gpt", "usage": None}
    for back in range(2, 8):
        house.use(f"at_provider_{back}", acme, house.day - back, provider=provider)
    house.use("in_doubt", acme, house.day - 8, anomaly="negative")
    cut_off = Ending.ENGINE_DIED, UsageSource.UNREAD
    house.use("cut_off", acme, house.day - 8, tokens=(0, 0, 0), ending=cut_off[0], source=cut_off[1])
    house.use("left", acme, house.day - 2, ending=cut_off[0], source=cut_off[1], provider=provider)
    house.sign()
    house.invoice()
    house.close_books()
    assert (
        house.blocked()
        == f"{acme.tenant_id}: usage of 1 requests is in doubt, and its finding is not resolved"
    )
    # Five at a time, the oldest first: two more days have requests that are final.
    assert [retention.drop_due(house.database, KEPT) for _ in range(3)] == [4, 1, 1]
    with house.database.connect() as connection:
        done = retention.dropped(connection, most=20)
        assert [(each.day - house.day, each.events, each.kept) for each in done] == [
            (1, 2, 0), (0, 3, 0), (-2, 0, 2), *((-back, 0, 1) for back in range(3, 8))
        ]  # fmt: skip
        assert [each.day for each in retention.due(connection, KEPT, most=20)] == [house.day - 8]
    with pytest.raises(Conflict, match="only requests at providers"):
        retention.drop(house.database, house.day - 2)
    house.resolve("quarantined")
    assert house.blocked() == ""
    # Of another one nobody has said anything yet.
    house.use("more_doubt", acme, house.day - 2, anomaly="negative")
    assert "usage of 1 requests is in doubt" in house.blocked()
    house.resolve("quarantined")
    assert retention.drop_due(house.database, KEPT) == 1
    assert "no invoice yet" in house.blocked()
    assert house.differences() == []


def test_a_day_is_kept_while_its_requests_may_explain_what_an_engine_counted(house: House) -> None:
    house.use("cut_off", house.tenants[0], house.day, ending=Ending.ENGINE_DIED, source=UsageSource.COUNTED)
    house.sign()
    house.invoice()
    house.close_books()
    assert house.blocked() == ""
    residual = Finding(kind=FindingKind.RESIDUAL, message="a residual", instance="i1", epoch="e1")
    with house.database.begin() as connection:
        finding_rows.keep(connection, [residual], facts=False)
    assert house.blocked() == "1 requests without a final count are not reconciled"
    house.resolve("residual")
    assert house.blocked() == ""
    # It says nothing of single requests, and they are compared with its counters when it has nothing to do.
    columns = {f"{name}_{kind}": 0 for name in ("baseline", "last") for kind in ("prompt", "generation")}
    with house.database.begin() as connection:
        connection.execute(
            insert(engine_counter).values(
                instance="i1", epoch="e1", run=0, polled_ms=0, state="open", **columns
            )
        )
    assert house.blocked() == "1 requests without a final count are not reconciled"


def test_a_day_with_an_event_that_was_changed_is_kept(house: House) -> None:
    house.sign()
    house.invoice()
    house.close_books()
    with house.database.begin() as connection:
        connection.execute(text("set local session_replication_role = replica"))
        connection.execute(text("update usage_event set gateway = 'x' where request_id = 'first_1'"))
    with pytest.raises(Conflict, match="first_1 is not as it was chained"):
        retention.drop(house.database, house.day)


def test_events_taken_away_without_retention_are_found(house: House) -> None:
    with house.database.begin() as connection:
        connection.execute(text("set local session_replication_role = replica"))
        connection.execute(text("delete from usage_event where request_id = 'first_0'"))
    assert {each.kind.value for each in house.differences()} >= {"ledger_incomplete", "chain_broken"}
