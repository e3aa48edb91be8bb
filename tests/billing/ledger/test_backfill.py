"""Unpriced requests that are priced later: beside what stands, once, and as the price list says."""

from sqlalchemy import Engine, func, select, text

from billing.catalogue.money import Money
from billing.catalogue.price_book import set_price
from billing.findings import FindingKind
from billing.ledger.accounts import account_balance
from billing.ledger.backfill import Scope, backfill
from billing.ledger.check import check_ledger, set_aside
from billing.ledger.entries import record_events
from billing.ledger.usage_report import report_usage
from billing.schema.ledger import ledger_transaction
from tests.billing.events import event
from tests.billing.ledger.test_entries import received

EVER = Scope("m1", 0, 10**15)


def record(database: Engine, *ids: str, **fields: object) -> None:
    with database.begin() as connection:
        record_events(connection, received(*(event(each, (10, 4, 5), **fields) for each in ids)))  # type: ignore[arg-type]


def price(database: Engine, from_ms: int, output: str = "2") -> None:
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output=output, valid_from_ms=from_ms)


def test_a_preview_changes_nothing_and_the_deed_is_what_it_said(database: Engine) -> None:
    record(database, "a", "b", started_ms=1_000)
    price(database, 500)
    with database.begin() as connection:
        preview = backfill(connection, EVER, dry_run=True)
        (line,) = preview
        assert (line.requests, line.uncached, line.cached, line.output) == (2, 12, 8, 10)
        assert line.amount == Money(12 * 1_000_000 + 8 * 500_000 + 10 * 2_000_000)
        assert account_balance(connection, "receivable", "ten_a") == Money(0)
    with database.begin() as connection:
        assert backfill(connection, EVER, dry_run=False) == preview
    with database.begin() as connection:
        assert account_balance(connection, "receivable", "ten_a") == line.amount
        assert account_balance(connection, "revenue", "m1") == -line.amount


def test_done_again_it_finds_nothing_and_what_stood_stands(database: Engine) -> None:
    record(database, "a", started_ms=1_000)
    price(database, 500)
    with database.begin() as connection:
        before = connection.execute(select(ledger_transaction)).all()
        backfill(connection, EVER, dry_run=False)
    with database.begin() as connection:
        assert backfill(connection, EVER, dry_run=False) == []
        assert (
            connection.execute(
                select(ledger_transaction).where(ledger_transaction.c.corrects.is_(None))
            ).all()
            == before
        )
        assert connection.execute(select(func.count()).select_from(ledger_transaction)).scalar_one() == 2
        total = report_usage(connection, tenant="ten_a").total.to_json()
        assert (total["requests"], total["unpriced"]["requests"]) == (1, 0)
        assert total["tokens"] == {"prompt": 10, "cached": 4, "written": 0, "output": 5}
        assert check_ledger(connection) == []
        assert FindingKind.UNPRICED not in {finding.kind for finding in set_aside(connection)}


def test_only_its_scope_and_only_what_has_a_price_by_now(database: Engine) -> None:
    record(database, "early", started_ms=100)
    record(database, "theirs", started_ms=1_000, tenant="ten_b")
    record(database, "late", started_ms=2_000)
    record(database, "mine", started_ms=1_000)
    price(database, 500)
    with database.begin() as connection:
        found = backfill(connection, Scope("m1", 0, 2_000, "ten_a"), dry_run=False)
        assert [(each.requests, each.price_id is None) for each in found] == [(1, False), (1, True)]
        pricings = connection.execute(
            select(ledger_transaction.c.request_id).where(ledger_transaction.c.corrects.is_not(None))
        ).scalars()
        assert list(pricings) == ["mine"]


def test_a_free_model_is_priced_at_nothing_later_too(database: Engine) -> None:
    record(database, "a", started_ms=1_000)
    with database.begin() as connection:
        set_price(connection, "m1", input="0", cached_input="0", output="0", valid_from_ms=500)
        (line,) = backfill(connection, EVER, dry_run=False)
        assert line.amount == Money(0)
    with database.begin() as connection:
        assert check_ledger(connection) == []
        assert backfill(connection, EVER, dry_run=True) == []


def test_a_price_that_is_not_the_one_of_its_moment_is_found(database: Engine) -> None:
    price(database, 500)
    record(database, "a", started_ms=1_000)
    with database.begin() as connection:
        assert check_ledger(connection) == []
        # As two clocks that differ would have it: it held already when the request started, and the older one
        # was taken.
        connection.execute(text("alter table price disable trigger user"))
        connection.execute(
            text(
                "insert into price (model, valid_from_ms, input_picousd, cached_input_picousd, "
                "output_picousd) "
                "values ('m1', 900, 7, 7, 7)"
            )
        )
        (finding,) = check_ledger(connection)
        assert (finding.kind, finding.ids) == (FindingKind.LEDGER_MISPRICED, ("a",))
