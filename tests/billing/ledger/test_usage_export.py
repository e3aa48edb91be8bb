"""The export of a tenant's usage, and `taas-verify`, which checks it without our code and our servers."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from msgspec.structs import replace
from sqlalchemy import Engine, select, text

from billing.catalogue.money import Money
from billing.catalogue.price_book import set_price
from billing.invoices import credit_notes
from billing.invoices.lines import Tier
from billing.ledger.backfill import Scope, backfill
from billing.ledger.chain_entry import canonical
from billing.schema.chain import usage_chain
from billing.wire.ending import Ending
from billing.wire.evidence import key_id, public_pem
from deploy import taas_verify
from tests.billing.events import event
from tests.billing.invoices.test_close import DECEMBER, NOVEMBER, OCTOBER, Books
from tests.billing.ledger.tampering import CHANGES, Records
from tests.billing.ledger.test_chain import record
from tests.billing.verified import KEY, exported, report_of

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
            connection, made.number, amount=Money.parse("0.50"), reason="sorry", issuer="us", key=KEY,
            now_ms=made.issued_ms,
        )  # fmt: skip
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
    return exported(books.connection, books.tenant, from_ms)


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


@pytest.mark.parametrize(("change", "named"), CHANGES)
def test_what_differs_is_named(export: list[bytes], change: Callable[[Records], None], named: str) -> None:
    records = [json.loads(line) for line in export]
    change(records)
    report = report_of(canonical(each) + b"\n" for each in records)
    assert any(named in each for each in report.differences), report.differences


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("which", ["the last invoice", "its credit note", "spaces"])
def test_what_nothing_else_in_an_export_names_is_missed(
    export: list[bytes], which: str, signed: bool
) -> None:
    (last,) = [line for line in export if b'"name":"2023-12"' in line and b'"record":"invoice"' in line]
    (note,) = [line for line in export if b'"document":"credit_note"' in line]
    changed = {
        "the last invoice": [line for line in export if line != last],
        "its credit note": [line for line in export if line != note],
        "spaces": [line.replace(b",", b", ") if line == note else line for line in export],
    }[which]
    if signed:
        (difference,) = report_of(changed).differences
        assert difference.startswith("these are not the lines that were exported")
        return
    end = json.loads(changed.pop())
    end["sha256"] = hashlib.sha256(b"".join(changed)).hexdigest()
    (difference,) = report_of([*changed, canonical(end) + b"\n"]).differences
    assert difference.startswith("end: its signature is not of the key")


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
    assert said.splitlines()[-1] == "not as it was recorded"


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


@pytest.mark.parametrize("content", [b"", b"{}\n", b"nothing", b'{"record":"header","version":1}\n'])
def test_what_is_no_export_ends_with_2(verify: Verifier, content: bytes) -> None:
    assert verify([content])[0] == 2
