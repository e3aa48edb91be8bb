"""The export of a tenant's usage, and `taas-verify`, which checks it without our code and our servers."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace
from sqlalchemy import Engine, select, text

from billing.catalogue.money import Money
from billing.catalogue.price_book import set_price
from billing.invoices import credit_notes
from billing.invoices.lines import Tier, to_cents
from billing.ledger.backfill import Scope, backfill
from billing.ledger.chain import chain_waiting
from billing.ledger.chain_entry import canonical, digest
from billing.ledger.usage_export import export_usage, span_of
from billing.schema.chain import usage_chain
from billing.schema.clock import database_now_ms
from billing.wire.ending import Ending
from billing.wire.evidence import key_id, make_key, public_pem, read_private_key
from deploy import taas_verify
from tests.billing.events import event
from tests.billing.invoices.test_close import DECEMBER, NOVEMBER, OCTOBER, Books
from tests.billing.ledger.test_chain import record

KEY = read_private_key(make_key())
# All that it may need beside Python.
_NEEDED = ("cryptography", "cffi", "_cffi_backend", "pycparser")


@dataclass
class Verifier:
    """Runs the file by itself: no environment, no packages but `cryptography`."""

    folder: Path

    def __call__(self, lines: list[bytes], *more: str) -> tuple[int, str]:
        export = self.folder / "export.ndjson"
        export.write_bytes(b"".join(lines))
        begin = (
            f"import sys, runpy; sys.path[:] = [each for each in sys.path if 'site-packages' not in each]; "
            f"sys.path.append({str(self.folder / 'packages')!r}); sys.argv[:] = sys.argv[1:]; "
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", begin, str(self.folder / "taas_verify.py"), str(export),
             "--key", str(self.folder / "key.pub"), *more],
            capture_output=True, text=True, env={}, cwd=self.folder, check=False,
        )  # fmt: skip
        assert done.stderr == "" or done.returncode == 2, done.stderr
        return done.returncode, done.stdout


@pytest.fixture(scope="module")
def verify(tmp_path_factory: pytest.TempPathFactory) -> Verifier:
    folder = tmp_path_factory.mktemp("alone")
    (folder / "taas_verify.py").write_bytes(Path(taas_verify.__file__).read_bytes())
    (folder / "key.pub").write_text(public_pem(KEY))
    packages = folder / "packages"
    packages.mkdir()
    site = next(path for path in map(Path, sys.path) if (path / "cryptography").is_dir())
    for path in site.iterdir():
        if path.name.split(".")[0] in _NEEDED:
            (packages / path.name).symlink_to(path)
    return Verifier(folder)


@pytest.fixture
def books(database: Engine, raw_redis: redis.Redis) -> Iterator[Books]:
    """A tenant with requests of all kinds of pricing, a correction, three invoices of which one has late
    usage, and a credit note.
    """
    with database.connect() as connection:  # nothing is committed
        books = Books(
            connection, raw_redis, tax_name="VAT", tax_basis_points=1900, commitment=Money.parse("5"),
            tiers=(Tier(Money.parse("1"), 10), Tier(Money.parse("3"), 33)),
        )  # fmt: skip
        of = {"tenant": books.tenant.tenant_id}
        books.use(OCTOBER, (1_000_003, 7, 500_001))
        books.use(OCTOBER + 1, (10, 0, 5), line="bat_1/1", class_="flex")
        books.use(OCTOBER + 2, (10, 0, 5), model="m2")
        books.use(OCTOBER + 3, anomaly="usage_missing")
        books.use(OCTOBER + 4, ending=Ending.ENGINE_DIED)
        record(connection, replace(event("ä", (3, 0, 1), **of), ended_ms=OCTOBER + 9, ignored=("n",)))
        books.close("2023-10", KEY)
        books.use(NOVEMBER - 1, (200_000, 0, 100_000))
        set_price(connection, "m2", input="3", cached_input="1", output="5", valid_from_ms=0)
        backfill(connection, Scope("m2", 0, 10**14), dry_run=False)
        set_price(connection, "m1", input="1.1", cached_input="1", output="3", cache_write="2")
        books.use(NOVEMBER + 5, (9_000_000, 0, 1))
        made = books.close("2023-11", KEY)
        books.use(DECEMBER + 5)
        books.close("2023-12", KEY)
        credit_notes.issue(
            connection, made.number, amount=Money.parse("0.50"), reason="sorry", key=KEY,
            now_ms=made.issued_ms,
        )  # fmt: skip
        while chain_waiting(connection, most=100):
            pass
        yield books


@pytest.fixture(scope="module")
def exports() -> list[list[bytes]]:
    """What was exported so far."""
    return []


@pytest.fixture
def export(exports: list[list[bytes]], request: pytest.FixtureRequest) -> list[bytes]:
    """Of such books; the same for every test, because none needs the books beside it."""
    if not exports:
        exports.append(written(request.getfixturevalue("books")))
    return list(exports[0])


def written(books: Books, from_ms: int = 0) -> list[bytes]:
    """The lines of an export of all since then."""
    until_ms = max(from_ms, database_now_ms(books.connection) + 1)
    span = span_of(books.connection, books.tenant.tenant_id, from_ms, until_ms)
    return list(export_usage(books.connection, books.tenant, span, KEY))


Records = list[dict[str, Any]]


def one(records: Records, **wanted: Any) -> dict[str, Any]:
    """The first record with these members."""
    return next(each for each in records if wanted.items() <= each.items())


def entry(records: Records, request_id: str) -> dict[str, Any]:
    return next(each for each in records if each.get("entry", {}).get("request_id") == request_id)


def test_an_export_is_verified_alone(export: list[bytes], verify: Verifier) -> None:
    status, said = verify(export, "--json")
    found = json.loads(said)
    assert (status, found["differences"], found["notes"]) == (0, [], [])
    assert found["checked"] == {
        "invoices": 4, "invoice lines": 22, "prices": 2, "entries": 10, "receipts": 7, "checkpoints": 1,
        "invoice lines against entries": 24,
    }  # fmt: skip
    assert found["amount"] == "13.4000835"
    status, said = verify(export)
    assert (status, said.splitlines()[-1]) == (
        0, f"good: all is as it was recorded and signed by the key {key_id(KEY.public_key())}",
    )  # fmt: skip


def _event(records: Records) -> None:
    entry(records, "req_1")["event"]["billed_output"] += 1


def _internal(records: Records) -> None:
    entry(records, "req_1")["internal"] = "0" * 64


def _posting(records: Records) -> None:
    entry(records, "req_1")["postings"][1][2] = "-1"


def _price(records: Records) -> None:
    one(records, record="price", model="m1")["output_picousd"] += 1


def _receipt(records: Records) -> None:
    entry(records, "req_1")["receipt"][0]["tokens"] -= 1


def _moment(records: Records) -> None:
    entry(records, "req_1")["entry"]["recorded_ms"] += 1


def _amount(records: Records) -> None:
    entry(records, "req_4")["entry"]["amount_picousd"] = "5"


def _hash(records: Records) -> None:
    entry(records, "req_2")["hash"] = "0" * 64


def _swapped(records: Records) -> None:
    first, second = records.index(entry(records, "req_2")), records.index(entry(records, "ä"))
    records[first], records[second] = records[second], records[first]


def _taken_out(records: Records) -> None:
    records.remove(entry(records, "req_2"))


def _cut_off(records: Records) -> None:
    del records[-1]


def _invoice_taken_out(records: Records) -> None:
    records.remove(one(records, record="invoice", number="INV-000002"))


def _unsigned(records: Records) -> None:
    one(records, record="checkpoint")["signature"] = None


def _checkpoint(records: Records) -> None:
    one(records, record="checkpoint")["checkpoint"]["at_ms"] += 1


def _end(records: Records) -> None:
    records[-1]["amount_picousd"] = "1"


def _other_tenant(records: Records) -> None:
    records[0]["tenant"]["id"] = "ten_x"


def _invoice(records: Records) -> None:
    one(records, number="INV-000001")["document"]["lines"][0]["tokens"] += 1


def _invoice_of_ours(records: Records) -> None:
    """Signed as it is, and wrong: a token too many in a line, whose sums are right."""
    record = one(records, number="INV-000003")
    line = next(line for line in record["document"]["lines"] if line["kind"] == "output")
    line["tokens"] += 1
    line["exact"] = "1.000002"
    _sign(record)


def _covered_too_little(records: Records) -> None:
    """As if nothing of October's commitment was left for its late usage; its sums are right."""
    record = one(records, number="INV-000002")
    document = record["document"]
    document["earlier"][0]["unused"] = "0.00"
    (line,) = (line for line in document["lines"] if line["type"] == "covered")
    given = Money.parse(line["amount"])
    document["lines"].remove(line)
    for number, each in enumerate(document["lines"], 1):
        each["line"] = number
    net = Money.parse(document["net"]) - given
    tax = to_cents(Fraction(net.picousd * 19, 100))
    document |= {"net": str(net), "tax": str(tax), "total": str(net + tax), "due": str(net + tax)}
    _sign(record)


def _sign(record: dict[str, Any]) -> None:
    record["sha256"] = digest(record["document"])
    record["signature"] = base64.b64encode(KEY.sign(b"taas invoice 1\n" + record["sha256"].encode())).decode()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_event, "request req_1 (position 1): its event part is not as it was recorded"),
        (_internal, "request req_1 (position 1): its internal part is not as it was recorded"),
        (_posting, "request req_1 (position 1): its postings part is not as it was recorded"),
        (_price, "price 1: it is not as it was recorded"),
        (_receipt, "request req_1 (position 1): uncached_input of its receipt (tokens, price, amount)"),
        (_moment, "request req_1 (position 1): its place, moment, pricing or amount is not as it was"),
        (_amount, "request req_4 (position 4): its place, moment, pricing or amount is not as it was"),
        (_hash, "request req_2 (position 2): its place, moment, pricing or amount is not as it was"),
        (_swapped, "request ä (position 6): it follows position 1"),
        (_taken_out, "request req_3 (position 3): it follows position 1"),
        (_cut_off, "the export is cut off: it has no end"),
        (_unsigned, "it is not signed"),
        (_checkpoint, "its signature is not of the key"),
        (_end, "end: its amount in pico-dollars: it says 1, and is"),
        (_other_tenant, "its tenant: it says"),
        (_invoice, "invoice INV-000001: the SHA-256 of its document"),
        (
            _invoice_taken_out,
            "INV-000003: the invoice before it, from 2023-11-01 00:00:00 until 2023-12-01 00:00:00",
        ),
        (
            _covered_too_little,
            "INV-000002, late usage of 2023-10: its unused commitment: it says 0.00, and is",
        ),
        (_invoice_of_ours, "m1 on_demand price 1 output: its tokens: it says 500001, and is 500000"),
    ],
)
def test_what_differs_is_named(
    export: list[bytes], verify: Verifier, change: Callable[[Records], None], named: str
) -> None:
    records = [json.loads(line) for line in export]
    change(records)
    status, said = verify([canonical(each) + b"\n" for each in records])
    assert (status, named in said) == (1, True), said
    assert said.splitlines()[-1] == "not as it was recorded"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("update usage_event set billed_output = 4, absorbed_output = 1 where request_id = 'req_2'",
         "request req_2 (position 2): its event part"),
        ("update price set input_picousd = 1 where model = 'm2'", "price 2: it is not as it was recorded"),
        ("update ledger_posting set amount_picousd = 7 where amount_picousd > 0",
         "request req_1 (position 1): its postings part"),
        ("delete from usage_chain where position = 3", "request req_4 (position 4): it follows position 2"),
    ],
)  # fmt: skip
def test_what_was_changed_in_the_database_is_named(
    books: Books, verify: Verifier, change: str, named: str
) -> None:
    books.connection.execute(text("set local session_replication_role = replica"))
    books.connection.execute(text(change))
    status, said = verify(written(books))
    assert (status, named in said) == (1, True), said


def test_an_export_of_some_days_follows_the_one_before(books: Books, verify: Verifier) -> None:
    """Its chain begins in the middle; an invoice of which it has not everything is checked by itself."""
    at_ms = books.connection.execute(
        select(usage_chain.c.chained_ms).where(usage_chain.c.chain == books.tenant.tenant_id)
        .order_by(usage_chain.c.position).offset(6).limit(1)
    ).scalar_one()  # fmt: skip
    lines = written(books, from_ms=at_ms)
    header, last = json.loads(lines[0]), json.loads(lines[-1])
    assert 1 < header["first"] <= 7
    assert last["entries"] == 10 - header["first"] + 1
    status, said = verify(lines)
    assert status == 0, said
    nothing = written(books, from_ms=header["exported_ms"] + 60_000)
    status, said = verify(nothing)
    assert (status, "1 checkpoints" in said) == (0, True), said


@pytest.mark.parametrize("content", [b"", b"{}\n", b"nothing", b'{"record":"header","version":2}\n'])
def test_what_is_no_export_ends_with_2(verify: Verifier, content: bytes) -> None:
    assert verify([content])[0] == 2
