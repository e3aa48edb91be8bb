"""FOCUS: the charges of billing periods add up to their invoices, and each row is as the standard has it."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

import pytest
import redis
from sqlalchemy import Connection, Engine, text

from billing.catalogue import projects, tenants
from billing.catalogue.money import Money
from billing.catalogue.price_book import Scope, set_price
from billing.contracts import store as contracts
from billing.exports.focus import Asked, cost_and_usage
from billing.exports.focus_columns import Dataset, Version, columns_of
from billing.exports.focus_supporting import billing_periods, contract_commitments, invoice_details
from billing.exports.table import ONE, Kind, write
from billing.invoices import credit_notes
from billing.invoices.lines import Terms, Tier
from billing.invoices.store import Stored
from billing.invoices.terms import set_capacity_price, set_terms
from tests.billing.exports.focus_rules import ALLOWED, broken
from tests.billing.invoices.test_close import DECEMBER, ISSUED_MS, NOVEMBER, OCTOBER, Books
from tests.billing.ledger.test_price_scopes import OURS, START_MS, sign
from tests.billing.verified import KEY

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
JANUARY = DECEMBER + 31 * DAY_MS
# In the middle of December.
NOW_MS = DECEMBER + 14 * DAY_MS


class World:
    """A tenant with two projects, a contract with prices of capacity and of tokens, a minimum commitment, a
    volume discount, tax, a credit, late usage and a credit note that gives some of the credit back. October
    and November are closed.
    """

    def __init__(self, connection: Connection, client: redis.Redis) -> None:
        self.connection = connection
        self.books = Books(connection, client)
        self.books.tenant = self.tenant = tenants.create(connection, "globex", time_zone="America/New_York")
        set_terms(
            connection, self.tenant.tenant_id,
            Terms(tax_name="VAT", tax_basis_points=1900, commitment=Money.parse("30"),
                  tiers=(Tier(Money.parse("2"), 33),)), 0,
        )  # fmt: skip
        self.search = projects.create(connection, self.tenant.tenant_id, "search").project_id
        sign(connection, OURS, self.tenant.tenant_id)
        connection.execute(
            text("insert into contract_step values (:id, :at, 7001)"), {"id": OURS, "at": START_MS}
        )
        self.minute(2, 300_001)
        self.minute(3, 1_700_000)
        set_capacity_price(connection, contracts.find(connection, OURS), "0.7", 500, 0, ISSUED_MS)
        set_price(
            connection, "m1", input="0.3", cached_input="0", output="1.7", valid_from_ms=NOVEMBER,
            scope=Scope(contract_id=OURS), now_ms=lambda: NOVEMBER,
        )  # fmt: skip
        self.books.use(OCTOBER + 5 * HOUR_MS, (1_000_003, 7, 11))
        self.books.use(OCTOBER + 6 * DAY_MS, (13, 0, 3_000_001), project=self.search)
        self.october = self.books.close("2023-10")
        self.books.use(OCTOBER + 7 * DAY_MS, (3_000_003, 1, 1), project=self.search)  # late
        self.books.use(NOVEMBER + 5 * HOUR_MS, (5_000_001, 0, 17), class_="flex")
        within = {"class_": "reserved", "contract": OURS}
        for project, tokens in ((self.search, (70, 0, 7)), ("default", (11, 0, 3))):
            self.books.use(START_MS + 60_000, tokens, project=project, **within)
        self.books.grant("1.11", NOVEMBER)
        self.november = self.books.close("2023-11")
        self.books.use(NOVEMBER + 9 * DAY_MS, (1, 0, 1))  # late
        self.books.use(DECEMBER + 5 * HOUR_MS, (9, 0, 9))
        self.note = credit_notes.issue(
            connection,
            self.november.number,
            Money.parse("29.80"),
            "an outage",
            issuer="us",
            key=KEY,
            now_ms=NOW_MS - 1,
        )

    def minute(self, nth: int, used_mu: int) -> None:
        self.connection.execute(
            text("""
                insert into contract_minute (contract_id, minute_ms, assigned_mu, used_mu, lent_mu,
                  borrowed_mu, refused, cut_mu, missing_mu)
                values (:id, :minute, 420060, :used, 0, 0, 0, 0, 60000)
            """),
            {"id": OURS, "minute": START_MS - START_MS % 60_000 + nth * 60_000, "used": used_mu},
        )

    def asked(self, from_ms: int = 0, until_ms: int = JANUARY) -> Asked:
        return Asked(
            tenant=self.tenant, from_ms=from_ms, until_ms=until_ms, now_ms=NOW_MS, issuer="Hooli Inc."
        )

    def rows(self, from_ms: int = 0, until_ms: int = JANUARY) -> list[dict[str, Any]]:
        return [dict(row) for row in cost_and_usage(self.connection, self.asked(from_ms, until_ms))]


@pytest.fixture
def world(database: Engine, raw_redis: redis.Redis) -> Iterator[World]:
    with database.begin() as connection:
        yield World(connection, raw_redis)


def billed(rows: list[dict[str, Any]], made: Stored) -> int:
    return sum(row["BilledCost"] for row in rows if row["InvoiceId"] == made.number)


def test_rows_add_up_to_each_invoice_and_to_each_of_its_lines(world: World) -> None:
    rows = world.rows()
    for made in (world.october, world.november, world.note):
        document = json.loads(made.document)
        assert billed(rows, made) == made.due.picousd
        by_line: dict[str, int] = defaultdict(int)
        for row in rows:
            if row["InvoiceId"] == made.number:
                by_line[row["InvoiceDetailId"]] += row["BilledCost"]
        for line in document["lines"]:
            assert by_line.pop(str(line["line"])) == Money.parse(line["amount"]).picousd
        assert by_line.pop("tax") == Money.parse(document["tax"]).picousd
        credits = {f"credit/{each['credit']}": -Money.parse(each["amount"]).picousd
                   for each in document.get("credits", [])}  # fmt: skip
        assert by_line == credits


def test_what_is_covered_by_a_purchase_is_effective_instead_of_it(world: World) -> None:
    """7.001 units at 0.70 USD for an hour: 4.9007 USD. Of 25,203.6 unit-seconds 2,000.001 are used."""
    rows = world.rows()
    of_contract = [row for row in rows if row["CommitmentDiscountId"] == OURS]
    (bought,) = [row for row in of_contract if row["ChargeCategory"] == "Purchase"]
    assert (bought["BilledCost"], bought["EffectiveCost"]) == (4_900_700_000_000, 0)
    assert bought["CommitmentDiscountQuantity"] == 7_001_000_000_000
    assert {row["BilledCost"] for row in of_contract if row["ChargeCategory"] == "Usage"} == {0}
    shares: dict[Any, list[int]] = {}
    for row in of_contract:
        if row["ChargeCategory"] == "Usage":
            share = shares.setdefault((row["CommitmentDiscountStatus"], row["SubAccountName"]), [0, 0])
            share[0] += row["EffectiveCost"]
            share[1] += row["CommitmentDiscountQuantity"]
    assert sum(share[0] for share in shares.values()) == bought["BilledCost"]
    assert sum(share[1] for share in shares.values()) == bought["CommitmentDiscountQuantity"]
    assert set(shares) == {("Used", "search"), ("Used", "default"), ("Unused", None)}
    used = [share for (status, _), share in shares.items() if status == "Used"]
    assert sum(share[0] for share in used) == round(4_900_700_000_000 * 2_000_001 / 25_203_600)
    assert sum(share[1] for share in used) == round(2_000_001 * ONE / 3_600_000)
    commitment = [row for row in rows if row["x_InvoiceLineType"] == "commitment"]
    assert [(row["BilledCost"] > 0, row["CommitmentDiscountStatus"]) for row in commitment] == [
        (True, None), (False, "Unused"), (True, None), (False, "Unused"),
    ]  # fmt: skip
    assert sum(row["EffectiveCost"] for row in rows) == sum(row["BilledCost"] for row in rows)
    # What counts towards a minimum is what the invoice says that was spent, and the rest of it.
    applied: dict[str, Decimal] = defaultdict(Decimal)
    for row in rows:
        if row["ContractApplied"] and row["InvoiceId"]:
            (element,) = json.loads(row["ContractApplied"], parse_float=Decimal)["Elements"]
            applied[element["ContractCommitmentId"]] += element.get("ContractCommitmentAppliedCost", 0)
    assert [value for name, value in sorted(applied.items()) if "commitment" in name] == [30, 30]


def test_late_usage_and_a_correction_are_in_the_period_on_whose_document_they_are(world: World) -> None:
    late = [row for row in world.rows() if row["ChargePeriodEnd"] <= row["BillingPeriodStart"]]
    assert [(row["InvoiceId"], row["ChargeClass"]) for row in late] == [
        (world.november.number, None), (world.november.number, None), (world.november.number, None),
        (None, None), (None, None), *[(world.note.number, "Correction")] * 3,
    ]  # fmt: skip
    october = world.rows(OCTOBER + 40 * DAY_MS - 40 * DAY_MS, OCTOBER + 5 * DAY_MS)
    assert {row["InvoiceId"] for row in october} == {world.october.number}
    assert billed(october, world.october) == world.october.due.picousd
    assert world.rows(DECEMBER + 15 * DAY_MS, DECEMBER + 16 * DAY_MS)[0]["InvoiceId"] is None
    assert world.rows(0, OCTOBER - DAY_MS) == []


def test_an_invoice_that_the_ledger_no_longer_bears_out_is_not_exported(world: World) -> None:
    world.connection.execute(text("update usage_hour set billed_output = billed_output + 1"))
    with pytest.raises(ValueError, match=f"taas invoice check {world.october.number}"):
        world.rows()


@pytest.mark.parametrize("version", Version)
def test_each_row_is_as_the_standard_has_it(world: World, version: Version) -> None:
    columns = columns_of(version, Dataset.COST_AND_USAGE)
    rows = world.rows()
    written = b"".join(write("csv", columns, rows)).decode()
    read = list(csv.DictReader(written.splitlines()))
    assert list(read[0]) == sorted(read[0], key=lambda name: (name.startswith("x_"), name))
    assert {row["ChargeCategory"] for row in read} == ALLOWED["ChargeCategory"]
    assert {row["x_InvoiceLineType"] for row in read} == {
        "usage", "discount", "covered", "capacity", "sla_credit", "commitment", "tax", "credit", "correction",
    }  # fmt: skip
    for row in read:
        assert list(broken(row)) == [], row
        assert not [name for name, value in row.items() if value[:1] in "=+@\t\r" and value]
        missing = [column.name for column in columns if not column.empty and not row[column.name]]
        assert missing == []
    for each, row in zip(read, rows, strict=True):
        assert Decimal(each["BilledCost"]) * ONE == row["BilledCost"]


def test_parquet_has_the_same_as_csv_to_the_last_decimal(world: World) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    columns, rows = columns_of(Version.V1_4, Dataset.COST_AND_USAGE), world.rows()
    file = io.BytesIO(b"".join(write("parquet", columns, rows)))
    table = parquet.read_table(file)
    assert str(table.schema.field("BilledCost").type) == "decimal128(38, 12)"
    assert str(table.schema.field("ChargePeriodStart").type) == "timestamp[ms, tz=UTC]"
    for read, row in zip(table.to_pylist(), rows, strict=True):
        for column in columns:
            value = row[column.name]
            if column.kind is Kind.DECIMAL and value is not None:
                assert read[column.name] * ONE == value
            elif column.kind is Kind.TEXT:
                assert read[column.name] == value
        assert read["ChargePeriodStart"].timestamp() * 1000 == row["ChargePeriodStart"]


def written(dataset: Dataset, rows: Iterable[Any]) -> list[dict[str, str]]:
    """As a reader of the file has it; each row is held against the standard."""
    columns = columns_of(Version.V1_4, dataset)
    read = list(csv.DictReader(b"".join(write("csv", columns, rows)).decode().splitlines()))
    for row in read:
        assert list(broken(row)) == [], row
        assert [each.name for each in columns if not each.empty and not row[each.name]] == []
    return read


def test_what_was_agreed_is_a_commitment_that_charges_name(world: World) -> None:
    made = written(Dataset.CONTRACT_COMMITMENT, contract_commitments(world.connection, world.asked()))
    told = [(row["ContractCommitmentCategory"], row["ContractCommitmentLifecycleStatus"]) for row in made]
    assert told == [("Usage", "Active"), ("Spend", "Expired"), ("Spend", "Expired"), ("Spend", "Active")]
    capacity, *minimum = made
    assert (capacity["ContractCommitmentCost"], capacity["ContractCommitmentQuantity"]) == ("4.9007", "7.001")
    assert (capacity["ContractCommitmentDurationType"], capacity["ContractCommitmentUnit"]) == (
        "1 Day", "Unit-Hours",
    )  # fmt: skip
    assert {row["ContractCommitmentCost"] for row in minimum} == {"30"}
    named = {row["CommitmentDiscountId"] for row in world.rows()} - {None}
    assert named < {row["ContractCommitmentId"] for row in made}
    later = world.asked(DECEMBER + DAY_MS, JANUARY)
    assert len(written(Dataset.CONTRACT_COMMITMENT, contract_commitments(world.connection, later))) == 1


def test_periods_are_closed_by_their_invoices_whose_lines_are_those_of_the_charges(world: World) -> None:
    periods = written(Dataset.BILLING_PERIOD, billing_periods(world.connection, world.asked()))
    assert [(row["BillingPeriodStart"], row["BillingPeriodStatus"]) for row in periods] == [
        ("2023-10-01T04:00:00Z", "Closed"), ("2023-11-01T04:00:00Z", "Closed"),
        ("2023-12-01T05:00:00Z", "Open"),
    ]  # fmt: skip
    details = written(Dataset.INVOICE_DETAIL, invoice_details(world.connection, world.asked()))
    charged: dict[tuple[str, str], int] = defaultdict(int)
    for row in world.rows():
        if row["InvoiceId"]:
            charged[row["InvoiceId"], row["InvoiceDetailId"]] += row["BilledCost"]
    assert {
        (row["InvoiceId"], row["InvoiceDetailId"]): Decimal(row["BilledCost"]) * ONE for row in details
    } == charged
    assert {row["ReferenceInvoiceId"] for row in details if row["InvoiceId"] == world.note.number} == {
        world.november.number
    }
