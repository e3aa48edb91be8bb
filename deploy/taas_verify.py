"""`taas-verify EXPORT --key PUBLIC`: checks an export of a tenant's usage without the system that wrote it.

This one file needs Python 3.11 and the package `cryptography`, nothing else: copy it to where you trust it.
From the export (`taas export --tenant T --format ndjson`) it works out anew the chain of hashes, the receipt
of each request and the invoices, to the pico-dollar (10^-12 USD), and checks the signatures with the public
key. It names whatever differs. Exit status: 0 all is as it was recorded, 1 something differs, 2 wrong usage.
"""

import argparse
import base64
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

VERSION = 2
PICOUSD = 10**12
CENT = PICOUSD // 100
PARTS = ("event", "internal", "postings", "price")
# Hex digits of each part's digest that an export carries, to say which part differs.
PART_DIGITS = 16
KINDS = ("uncached_input", "cached_input", "cache_write", "output")
# Lines of invoices that follow from others, each by what tells it from the others of its type.
DERIVED = {"discount": ("period", "above"), "covered": ("period",), "commitment": ("committed",)}
# A line of usage, but for its period.
GROUP = ("project", "model", "class", "contract", "price_id", "kind")
LINE_BYTES_MAX = 4 * 1024 * 1024
SHOWN_MAX = 50
# Of a record that has other members, or other values in them.
NOT_AS_IT_MUST_BE = (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError)


class NotAnExport(Exception):
    """The file or the key cannot be used at all."""


def canonical(document: Any) -> bytes:
    """JSON with sorted names and without spaces, in UTF-8."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(document: Any) -> str:
    """SHA-256 of the canonical form, in hex."""
    return hashlib.sha256(canonical(document)).hexdigest()


def usd(picousd: int | Fraction) -> str:
    """An amount for people."""
    whole, rest = divmod(abs(round(picousd)), PICOUSD)
    digits = f"{rest:012}".rstrip("0").ljust(2, "0")
    return f"{'-' if picousd < 0 else ''}{whole:,}.{digits}"


def picousd_of(text: str) -> int:
    """Of a decimal string of USD."""
    return exact(Fraction(text) * PICOUSD)


def exact(amount: Fraction) -> int:
    """Raises ValueError for what is no whole number."""
    if amount.denominator != 1:
        raise ValueError("not a whole number of pico-dollars")
    return amount.numerator


def to_cents(picousd: Fraction | int) -> int:
    """Whole cents, half to even, in pico-dollars."""
    return round(Fraction(picousd) / CENT) * CENT


def day(moment_ms: int) -> str:
    """A moment for people."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


class Report:
    """What was checked, and what differs."""

    def __init__(self) -> None:
        self.checked: Counter[str] = Counter()
        # In their order, each once.
        self._differences: dict[str, None] = {}
        self.notes: list[str] = []
        self.amount = 0

    def differs(self, what: str) -> None:
        """Note it once."""
        self._differences[what] = None

    @property
    def differences(self) -> list[str]:
        """What differs, in the order of the export."""
        return list(self._differences)

    def expect(self, what: str, said: Any, found: Any) -> bool:
        """Whether both are the same; noted where they are not."""
        if said != found:
            self.differs(f"{what}: it says {said}, and is {found}")
        return bool(said == found)


class Signatures:
    """Ed25519, by one public key."""

    def __init__(self, path: Path) -> None:
        try:
            key = load_pem_public_key(path.read_bytes())
        except (OSError, ValueError) as exc:
            raise NotAnExport(f"{path} holds no public key in PEM: {exc}") from exc
        if not isinstance(key, Ed25519PublicKey):
            raise NotAnExport(f"{path} holds no Ed25519 key")
        self._key = key
        self.id = hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]

    def check(self, what: str, record: dict[str, Any], text: bytes, report: Report) -> bool:
        """Whether `signature` of the record is of this text."""
        if record.get("signature") is None:
            report.differs(f"{what}: it is not signed")
            return False
        try:
            self._key.verify(base64.b64decode(record["signature"], validate=True), text)
        except (InvalidSignature, ValueError, TypeError):
            other = f"; it names the key {record.get('key')}" if record.get("key") != self.id else ""
            report.differs(f"{what}: its signature is not of the key {self.id}{other}")
            return False
        return True


class Invoices:
    """The invoices of the export, and what its entries add up to for each."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._documents: list[dict[str, Any]] = []
        self._notes: list[dict[str, Any]] = []
        self._numbers: set[str] = set()
        self._prices: dict[int, dict[str, Any]] = {}
        # What credit notes leave of each invoice so far, and of its commitment what nothing has used.
        self._left: dict[str, int] = {}
        self._unused: dict[str, int] = {}
        # Those of which entries cannot be added up: their events were dropped.
        self._unknown: set[str] = set()
        self._own: dict[str, Counter[tuple[Any, ...]]] = {}
        self._late: dict[str, Counter[tuple[Any, ...]]] = {}

    def price(self, record: dict[str, Any]) -> None:
        """A price that entries name, and lines of usage."""
        self._prices[record["price_id"]] = record

    def take(self, record: dict[str, Any], tenant: str, signatures: Signatures) -> None:
        """Check a document of the tenant by itself."""
        document, number = record["document"], record["number"]
        what = f"{document['document'].replace('_', ' ')} {number}"
        self._report.checked["invoices"] += 1
        self._report.expect(f"{what}: its number", number, document["number"])
        self._report.expect(f"{what}: its tenant", document["tenant"]["id"], tenant)
        if number in self._numbers:
            self._report.differs(f"{what}: there is another document of this number")
        self._numbers.add(number)
        if self._report.expect(f"{what}: the SHA-256 of its document", record["sha256"], digest(document)):
            text = b"taas invoice 1\n" + record["sha256"].encode()
            signatures.check(what, {**record, "key": record.get("key")}, text, self._report)
        check_sums(what, document, self._report)
        if document["document"] == "invoice":
            begins_ms = document["period"]["from_ms"]
            if self._documents and in_order(self._documents[-1]) >= in_order(document):
                self._report.differs(f"{what}: its number is before that of the invoice before it")
            if self._documents and self._documents[-1]["period"]["until_ms"] != begins_ms:
                missing = f"{day(self._documents[-1]['period']['until_ms'])} until {day(begins_ms)} UTC"
                self._report.differs(f"{what}: the invoice before it, from {missing}, is missing")
            for each in document.get("earlier", ()):
                self._earlier(what, each)
            if "earlier" in document and self._documents:
                names = [each["period"]["name"] for each in self._documents]
                late = {line["period"] for line in usage_lines(document)} & set(names)
                said = sorted(each["period"] for each in document["earlier"] if each["period"] >= names[0])
                self._report.expect(f"{what}: the periods of its late usage", said, sorted(late))
            self._documents.append(document)
            self._own[number], self._late[number] = Counter(), Counter()
            self._draw(document)
        else:
            self._notes.append(document)
            if (corrected := document["corrects"]) in self._left:
                self._left[corrected] += picousd_of(document["net"])
                # The unused commitment is given back last.
                self._unused[corrected] = min(self._unused[corrected], self._left[corrected])

    def _draw(self, document: dict[str, Any]) -> None:
        """Its commitment is unused, and what it covers draws on those of earlier invoices."""
        charged = (line for line in document["lines"] if line["type"] == "commitment")
        self._left[document["number"]] = picousd_of(document["net"])
        self._unused[document["number"]] = sum(picousd_of(line["amount"]) for line in charged)
        numbers = {each["period"]["name"]: each["number"] for each in self._documents}
        for line in document["lines"]:
            if line["type"] == "covered" and line["period"] in numbers:
                self._unused[numbers[line["period"]]] += picousd_of(line["amount"])

    def _earlier(self, what: str, said: dict[str, Any]) -> None:
        """What an invoice says of a period of which usage came late, with what those before it leave."""
        since = [each for each in self._documents if each["period"]["name"] >= said["period"]]
        if not since or since[0]["period"]["name"] != said["period"]:
            self._report.notes.append(f"{what}: the export lacks the invoice of {said['period']}")
            return
        own, where = since[0], f"{what}, late usage of {said['period']}"
        of_it = [line for each in since for line in each["lines"] if line.get("period") == said["period"]]
        billed = sum(picousd_of(line["exact"]) for line in of_it if line["type"] == "usage")
        self._report.expect(f"{where}: what is billed of it", picousd_of(said["billed"]), billed)
        self._report.expect(f"{where}: its tiers", said["tiers"], own["terms"]["tiers"])
        unused = self._unused[own["number"]]
        self._report.expect(f"{where}: its unused commitment", said["unused"], plain(max(0, unused)))

    def add(self, entry: dict[str, Any], event: dict[str, Any], tokens: dict[str, int], price: int) -> None:
        """An entry of a request with an amount."""
        contract, class_ = event.get("contract", ""), "batch" if event.get("line") else event["class"]
        group = event["project"], event["model"], class_, contract, price
        ended_ms, used_in = event["ended_ms"], ""
        for before, document in zip([None, *self._documents], self._documents, strict=False):
            period = document["period"]
            if period["from_ms"] <= ended_ms < period["until_ms"]:
                used_in = period["name"]
            if entry["entry"] > document["ledger_upto"] or ended_ms >= period["until_ms"]:
                continue
            if used_in == period["name"]:
                sums = self._own
            elif before is not None and entry["entry"] > before["ledger_upto"]:
                sums = self._late
            else:
                continue
            sums[document["number"]].update({(used_in, *group, kind): tokens[kind] for kind in KINDS})

    def cannot_add(self, entry: dict[str, Any], chained_ms: int) -> None:
        """An entry that may be on invoices, without the event that would say so."""
        for document in self._documents:
            if entry["entry"] <= document["ledger_upto"] and chained_ms >= document["period"]["from_ms"]:
                self._unknown.add(document["number"])

    def compare(self, header: dict[str, Any]) -> None:
        """Lines of usage with their prices, and with what the entries add up to where the export has all of
        the period; credit notes with their invoices.
        """
        for note in self._notes:
            self._note(note)
        used: Counter[str] = Counter()
        for document in self._documents:
            used.update({each["credit"]: picousd_of(each["amount"]) for each in document.get("credits", ())})
        for note in self._notes:
            for each in note.get("credits", ()):
                if used[each["credit"]] > -picousd_of(each["amount"]):
                    what = f"credit {each['credit']} of credit note {note['number']}"
                    self._report.differs(f"{what}: invoices use more than it gives")
        for number, document in enumerate(self._documents):
            name, period = document["number"], document["period"]
            for line in usage_lines(document):
                if line["price_id"] in self._prices:
                    price = prices_of(self._prices[line["price_id"]])[line["kind"]] * 10**6
                    what = f"invoice {name}, line {line['line']}: its price, by price {line['price_id']}"
                    self._report.expect(what, line["price"], plain(price))
            if name in self._unknown:
                self._report.notes.append(
                    f"invoice {name}: its tokens were not added up, because retention has dropped usage "
                    "events that it counts"
                )
                continue
            if header["from_ms"] > period["from_ms"] or header["until_ms"] < document["issued_ms"]:
                self._report.notes.append(
                    f"invoice {name}: its tokens were not added up, because that takes an export from "
                    f"{day(period['from_ms'])} until {day(document['issued_ms'])} UTC or later"
                )
                continue
            own = [line for line in usage_lines(document) if line["period"] == period["name"]]
            self._compare(f"invoice {name}", own, self._own[name])
            late = [line for line in usage_lines(document) if line["period"] != period["name"]]
            if number:
                self._compare(f"invoice {name}, late usage", late, self._late[name])
            elif late:
                self._report.notes.append(
                    f"invoice {name}: its late usage was not added up for lack of the invoice before it"
                )

    def _compare(self, what: str, lines: list[dict[str, Any]], found: Counter[tuple[Any, ...]]) -> None:
        said: Counter[tuple[Any, ...]] = Counter()
        known = {document["period"]["name"] for document in self._documents}
        for line in lines:
            # Of usage from before the first invoice the export does not say which month it is put under.
            used_in = line["period"] if line["period"] in known else ""
            said[used_in, *(line[name] or "" for name in GROUP)] += line["tokens"]
        for key in sorted(said.keys() | found.keys(), key=str):
            used_in, project, model, class_, contract, price, kind = key
            where = f"{what}, {used_in} {project} {model} {class_} {contract} price {price} {kind}"
            self._report.expect(f"{where}: its tokens".replace("  ", " "), said[key], found[key])
            self._report.checked["invoice lines against entries"] += 1

    def _note(self, note: dict[str, Any]) -> None:
        """A credit note gives back a part of its invoice, and so much tax that what is left of that is the
        tax on what is left.
        """
        what = f"credit note {note['number']}"
        points, amount = note["terms"]["tax"]["basis_points"], -picousd_of(note["net"])
        lines = [(line["type"], line.get("invoice")) for line in note["lines"]]
        if lines != [("correction", note["corrects"])] or amount <= 0:
            self._report.differs(f"{what}: it is not one line that gives back of {note['corrects']}")
        corrected = [each for each in self._documents if each["number"] == note["corrects"]]
        if not corrected:
            self._report.notes.append(f"{what}: the export lacks its invoice {note['corrects']}")
            # Both what was left and what is left are rounded.
            if abs(-picousd_of(note["tax"]) - tax_on(amount, points)) > CENT:
                self._report.differs(f"{what}: its tax is not that of what it gives back")
            return
        invoice = corrected[0]
        self._report.expect(f"{what}: its rate of tax", points, invoice["terms"]["tax"]["basis_points"])
        same = [each for each in self._notes if each["corrects"] == note["corrects"]]
        before = [each for each in same if in_order(each) < in_order(note)]
        left = picousd_of(invoice["net"]) + sum(picousd_of(each["net"]) for each in before)
        if amount > left:
            self._report.differs(f"{what}: it gives back more than is left of {note['corrects']}")
        tax = tax_on(left - amount, points) - tax_on(left, points)
        self._report.expect(f"{what}: its tax", note["tax"], plain(tax))
        if "credits" in note:
            # What is due is given back first. Earlier versions gave back no credits.
            total = -picousd_of(note["total"])
            owed = picousd_of(invoice["due"]) + sum(picousd_of(each["total"]) for each in before)
            paid = sum(picousd_of(each["amount"]) for each in note["credits"])
            back = max(0, min(total, total - owed))
            self._report.expect(f"{what}: what it gives back as credits", plain(-paid), plain(back))


def usage_lines(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of tokens."""
    return [line for line in document["lines"] if line["type"] == "usage"]


def in_order(document: dict[str, Any]) -> int:
    """Documents of a kind are numbered in the order in which they were issued."""
    return int(document["number"].rpartition("-")[2])


def tax_on(net: int, basis_points: int) -> int:
    """Rounded once, to the cent; none on a negative amount."""
    return to_cents(Fraction(max(0, net) * basis_points, 10_000))


def check_sums(what: str, document: dict[str, Any], report: Report) -> None:
    """That lines, sums, tax and total of an invoice follow from each other."""
    for line, amount in expected_lines(document):
        where = f"{what}, line {line['line']} ({line['type']})"
        report.checked["invoice lines"] += 1
        if amount is not None:
            report.expect(f"{where}: its exact amount", line["exact"].replace(",", ""), plain(amount))
        said = picousd_of(line["exact"])
        if abs(Fraction(picousd_of(line["amount"])) - to_cents(amount if amount is not None else said)):
            report.differs(f"{where}: {line['amount']} is not {line['exact']} to the cent")
        if amount is None and (document["document"] == "invoice" or line["type"] != "correction"):
            report.differs(f"{where}: nothing says how much it is")
    net = sum(picousd_of(line["amount"]) for line in document["lines"])
    report.expect(f"{what}: the sum of its lines", document["net"], plain(net))
    tax = picousd_of(document["tax"])
    if document["document"] == "invoice":
        check_lines(what, document, report)
        owed = tax_on(net, document["terms"]["tax"]["basis_points"])
        report.expect(f"{what}: its tax", document["tax"], plain(owed))
    report.expect(f"{what}: its total", document["total"], plain(net + tax))
    credits = {each["credit"]: picousd_of(each["amount"]) for each in document.get("credits", ())}
    paid, sign = sum(credits.values()), 1 if document["document"] == "invoice" else -1
    least = min((each * sign for each in credits.values()), default=1)
    twice = len(credits) < len(document.get("credits", ()))
    if twice or least <= 0 or paid * sign > max(0, (net + tax) * sign):
        report.differs(f"{what}: its credits are more than it, or less than nothing, or one of them twice")
    report.expect(f"{what}: what is due", document["due"], plain(net + tax - paid))


def check_lines(what: str, document: dict[str, Any], report: Report) -> None:
    """That an invoice has each line that follows from others, once; that it charges capacity of its period
    alone and no moment of it twice; and gives back of what it charges.
    """
    follow = {place: amount for place, amount in derived(document).items() if amount}
    said = Counter(place_of(line) for line in document["lines"] if line["type"] in DERIVED)
    for place in sorted(follow.keys() | said.keys(), key=str):
        name = " ".join(str(each) for each in place if each is not None)
        report.expect(f"{what}: its lines {name}", said[place], int(place in follow))
    tiers = {(None, each["above"]): each["percent"] for each in document["terms"].get("tiers", ())}
    for earlier in document.get("earlier", ()):
        tiers |= {(earlier["period"], each["above"]): each["percent"] for each in earlier["tiers"]}
    for line in document["lines"]:
        if line["type"] == "discount" and place_of(line) in follow:
            where, part = f"{what}, line {line['line']} (discount)", follow[place_of(line)]
            percent = tiers[line.get("period"), line["above"]]
            report.expect(f"{where}: its percent", line["percent"], percent)
            report.expect(f"{where}: of what", line["of"], plain(-part * 100 / percent))
    ends: dict[str, int] = {}
    charged: Counter[tuple[Any, ...]] = Counter()
    piece = ("contract", "from_ms", "until_ms", "price_per_unit_hour")
    order = {"capacity": 0, "sla_credit": 1}
    lines = [line for line in document["lines"] if line["type"] in order]
    for line in sorted(lines, key=lambda line: (order[line["type"]], line["from_ms"])):
        where, of = f"{what}, line {line['line']} ({line['type']})", tuple(line[name] for name in piece)
        if line["type"] == "sla_credit":
            if not charged[of]:
                report.differs(f"{where}: no capacity is charged of which it could give back, or it was")
            charged[of] = 0
            continue
        begins = max(document["period"]["from_ms"], ends.get(line["contract"], 0))
        if not begins <= line["from_ms"] < line["until_ms"] <= document["period"]["until_ms"]:
            report.differs(f"{where}: it is not within the period, or of a time that another line charges")
        ends[line["contract"]] = max(begins, line["until_ms"])
        charged[of] = 1


def plain(picousd: int | Fraction) -> str:
    """An amount as documents write it."""
    return usd(picousd).replace(",", "")


def discounts(document: dict[str, Any]) -> dict[tuple[str | None, str], Fraction]:
    """What is taken off by volume, by the period of late usage (None: of this one) and the amount above
    which: each tier of what is above it, to the next.
    """
    own = taken_off(usage_of(document, None), document["terms"].get("tiers", ()))
    off: dict[tuple[str | None, str], Fraction] = {(None, above): part for above, part in own.items()}
    for each in document.get("earlier", ()):
        parts = taken_off(usage_of(document, each["period"]), each["tiers"], picousd_of(each["billed"]))
        off |= {(each["period"], above): part for above, part in parts.items()}
    return off


def usage_of(document: dict[str, Any], period: str | None) -> list[dict[str, Any]]:
    """The lines of tokens of an earlier period; None: those that count for the invoice's own."""
    late = {each["period"] for each in document.get("earlier", ())}
    return [
        line
        for line in usage_lines(document)
        if (line["period"] not in late if period is None else line["period"] == period)
    ]


def taken_off(
    used: list[dict[str, Any]], tiers: list[dict[str, Any]], billed: int = 0
) -> dict[str, Fraction]:
    """By the amount above which. `billed`: so much was used before."""
    usage = sum((line["tokens"] * price_of(line["price"]) for line in used), Fraction(billed))
    tiers = sorted(tiers, key=lambda tier: picousd_of(tier["above"]))
    ends = [*(Fraction(picousd_of(tier["above"])) for tier in tiers[1:]), usage]
    return {
        tier["above"]: -max(Fraction(0), min(usage, end) - max(billed, picousd_of(tier["above"])))
        * tier["percent"] / 100
        for tier, end in zip(tiers, ends, strict=False)
    }  # fmt: skip


def covered(document: dict[str, Any]) -> dict[str, Fraction]:
    """What the commitments of earlier periods cover, by period: late usage less its discounts, as far as that
    commitment was charged and not used.
    """
    off = discounts(document)
    found = {}
    for each in document.get("earlier", ()):
        used = usage_of(document, each["period"])
        owed = sum(to_cents(line["tokens"] * price_of(line["price"])) for line in used)
        owed += sum(to_cents(part) for (period, _), part in off.items() if period == each["period"])
        found[each["period"]] = -Fraction(max(0, min(picousd_of(each["unused"]), owed)))
    return found


def derived(document: dict[str, Any]) -> dict[tuple[Any, ...], Fraction]:
    """The exact amounts, in pico-dollars, of the lines that follow from others, by `place_of`; 0: there is no
    such line.
    """
    off = discounts(document)
    amounts: dict[tuple[Any, ...], Fraction] = {("discount", *key): part for key, part in off.items()}
    amounts |= {("covered", period): part for period, part in covered(document).items()}
    held = [line for line in document["lines"] if line["type"] == "capacity"]
    spent = sum(picousd_of(line["amount"]) for line in [*usage_of(document, None), *held])
    spent += sum(to_cents(part) for (period, _), part in off.items() if period is None)
    committed = document["terms"].get("commitment", "0")
    amounts["commitment", committed] = Fraction(max(0, picousd_of(committed) - spent))
    return amounts


def place_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a line that follows from others from the rest of its type."""
    return line["type"], *(line.get(name) for name in DERIVED[line["type"]])


def expected_lines(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Fraction | None]]:
    """Each line with its exact amount in pico-dollars; None where only the document says it."""
    follow = derived(document) if document["document"] == "invoice" else {}
    for line in document["lines"]:
        amount: Fraction | None = None
        if line["type"] == "usage":
            amount = Fraction(line["tokens"]) * price_of(line["price"])
        elif line["type"] in DERIVED:
            amount = follow.get(place_of(line), Fraction(0))
        elif line["type"] == "capacity":
            each = picousd_of(line["price_per_unit_hour"]) * (line["until_ms"] - line["from_ms"])
            amount = Fraction(line["milliunits_per_second"] * each, 1_000 * 3_600_000)
        elif line["type"] == "sla_credit":
            each = picousd_of(line["price_per_unit_hour"]) * line["percent"]
            amount = -Fraction(line["milliunits_short"] * each, 1_000 * 3_600 * 100)
        yield line, amount


def price_of(text: str) -> Fraction:
    """Pico-dollars of a token, of a price in USD per million tokens."""
    return Fraction(text) * PICOUSD / 10**6


class Chain:
    """The entries, one after the other."""

    def __init__(self, header: dict[str, Any], report: Report, invoices: Invoices) -> None:
        self._report = report
        self._invoices = invoices
        self._tenant = header["tenant"]["id"]
        self.position: int = header["first"] - 1
        self.hash: str = header["previous"]
        # As it follows from the entry itself, where that differs from what the export says.
        self._expected = ""
        self._prices: dict[int, dict[str, Any]] = {}
        self._digests: dict[int, str] = {}
        # By request: whether it had a price, or none yet, when it was recorded.
        self._begun: dict[str, bool] = {}
        # Those that got their price later.
        self._corrected: set[str] = set()
        # Lines of batches that a request was billed for.
        self._lines: set[str] = set()

    def price(self, record: dict[str, Any]) -> None:
        """A price that later entries name."""
        self._report.checked["prices"] += 1
        self._prices[record["price_id"]] = record
        self._invoices.price(record)
        self._digests[record["price_id"]] = digest({k: v for k, v in record.items() if k != "record"})

    def add(self, record: dict[str, Any]) -> None:
        """The next entry."""
        report, facts = self._report, record["entry"]
        event, lines, price = record.get("event"), record.get("postings", []), record.get("price_id")
        name = facts.get("request_id") or f"{facts.get('kind')} {facts.get('subject')}"
        what = f"request {name} (position {record['position']})"
        report.checked["entries"] += 1
        if record["position"] != self.position + 1:
            report.differs(f"{what}: it follows position {self.position}")
        digests = {
            "event": digest(event) if event else record.get("dropped", {}).get("event", ""),
            "internal": record.get("internal", ""),
            "postings": digest({"lines": lines}) if lines else "",
            "price": self._digests.get(price, "unknown") if price else "",
        }
        document = {
            "chain": self._tenant, "position": record["position"], "chained_ms": record["chained_ms"],
            **facts, **digests,
        }  # fmt: skip
        text = canonical({key: value for key, value in document.items() if value})
        befores = [each for each in (self.hash, self._expected) if each]
        hashes = [hashlib.sha256(before.encode() + b"\n" + text).hexdigest() for before in befores]
        different = parts_that_differ(record["parts"], digests)
        for part in different:
            report.differs(f"price {price}: it is not as it was recorded" if part == "price" else
                           f"{what}: its {part} part is not as it was recorded")  # fmt: skip
        moved = record["hash"] not in hashes
        if moved and not different:
            report.differs(f"{what}: its place, moment, pricing or amount is not as it was recorded")
        self._expected = hashes[0] if moved else ""
        self.position, self.hash = record["position"], record["hash"]
        if facts.get("request_id"):
            self._once(what, facts)
        if event:
            self._event(what, event, facts)
        self._receipt(what, record)

    def _once(self, what: str, facts: dict[str, Any]) -> None:
        """A request has one entry; if that has no price, one more that corrects it. They may be in the other
        order: what an earlier version recorded is chained later.
        """
        name, corrects = facts["request_id"], facts.get("corrects", False)
        if name in (self._corrected if corrects else self._begun):
            self._report.differs(f"{what}: it is in the chain a second time")
        if corrects:
            self._corrected.add(name)
        else:
            self._begun[name] = facts["pricing"] != "unpriced"
        if name in self._corrected and self._begun.get(name):
            self._report.differs(f"{what}: it is priced a second time")

    def _event(self, what: str, event: dict[str, Any], facts: dict[str, Any]) -> None:
        """That it is of this request and tenant, and bills no more than was produced, nor a line of a batch
        that another request was billed for.
        """
        report = self._report
        if event.get("request_id") != facts.get("request_id"):
            report.differs(f"{what}: its event is of request {event.get('request_id')}")
        report.expect(f"{what}: the tenant of its event", event.get("tenant"), self._tenant)
        for kind in ("prompt", "output"):
            parts = (event.get(f"{name}_{kind}", 0) for name in ("billed", "absorbed"))
            report.expect(f"{what}: produced_{kind}", event.get(f"produced_{kind}", 0), sum(parts))
        tokens = billed(event)
        if min(tokens.values()) < 0:
            report.differs(f"{what}: it is billed less than no tokens")
        if event.get("line") and any(tokens.values()) and not facts.get("corrects"):
            if event["line"] in self._lines:
                report.differs(f"{what}: line {event['line']} of a batch is billed a second time")
            self._lines.add(event["line"])

    def _receipt(self, what: str, record: dict[str, Any]) -> None:
        """Tokens by kind × price = amount, which its postings move."""
        report, facts, lines = self._report, record["entry"], record.get("postings", [])
        amount = int(facts["amount_picousd"])
        report.amount += amount
        report.expect(f"{what}: the sum of its postings", 0, sum(int(line[2]) for line in lines))
        owed = sum(int(line[2]) for line in lines if line[:2] == ["receivable", self._tenant])
        report.expect(f"{what}: its amount, by what is posted to its tenant", amount, owed)
        if facts.get("pricing") != "priced":
            report.expect(f"{what}: its amount, as it has no price", amount, 0)
            return
        if "dropped" in record:
            report.checked["entries without their event (dropped by retention)"] += 1
            self._invoices.cannot_add(facts, record["chained_ms"])
            return
        price = self._prices.get(record.get("price_id", 0))
        if price is None:
            report.differs(f"{what}: the export lacks its price {record.get('price_id')}")
            return
        report.checked["receipts"] += 1
        if not is_price_of(price, record["event"]):
            report.differs(
                f"{what}: price {price['price_id']} is not of its model, moment, class or contract"
            )
        if record["event"].get("anomaly") and not facts.get("corrects"):
            report.differs(f"{what}: it is billed, though its usage is in doubt")
        tokens, prices = billed(record["event"]), prices_of(price)
        total = 0
        receipt = {line["kind"]: line for line in record["receipt"]}
        for kind in KINDS:
            line = receipt.pop(kind, {"tokens": 0, "picousd": prices[kind], "amount_picousd": "0"})
            said = line["tokens"], line["picousd"], int(line["amount_picousd"])
            found = tokens[kind], prices[kind], tokens[kind] * prices[kind]
            report.expect(f"{what}: {kind} of its receipt (tokens, price, amount)", said, found)
            total += found[2]
        report.expect(f"{what}: other lines of its receipt", sorted(receipt), [])
        report.expect(f"{what}: its amount, by tokens and price {price['price_id']}", amount, total)
        self._invoices.add(facts, record["event"], tokens, price["price_id"])


def parts_that_differ(said: str, digests: dict[str, str]) -> list[str]:
    """Which parts of an entry are not those of which the export has the first digits."""
    return [
        part
        for number, part in enumerate(PARTS)
        if said[number * PART_DIGITS :][:PART_DIGITS] != (digests[part] or "0" * PART_DIGITS)[:PART_DIGITS]
    ]


def billed(event: dict[str, Any]) -> dict[str, int]:
    """The billed tokens of an event by kind."""
    prompt, cached, written, output = (
        event.get(f"billed_{name}", 0) for name in ("prompt", "cached", "written", "output")
    )
    return {
        "uncached_input": prompt - cached - written, "cached_input": cached, "cache_write": written,
        "output": output,
    }  # fmt: skip


def prices_of(price: dict[str, Any]) -> dict[str, int]:
    """Pico-dollars of a token of each kind."""
    return {
        "uncached_input": price["input_picousd"], "cached_input": price["cached_input_picousd"],
        "cache_write": price.get("cache_write_picousd", price["input_picousd"]),
        "output": price["output_picousd"],
    }  # fmt: skip


def is_price_of(price: dict[str, Any], event: dict[str, Any]) -> bool:
    """Whether it can be the price of a request: of its model, from before it started, and of its class and
    contract or of all. One that was above its contract names none, and may pay by it.
    """
    classes = [None, event["class"], *(["batch"] if event.get("line") else [])]
    contracts = [None, event.get("contract")]
    spilled = "contract" not in event and event.get("decision", {}).get("why") == "spilled"
    return (
        price["model"] == event["model"]
        and price["valid_from_ms"] <= event.get("started_ms", 0)
        and price.get("class") in classes
        and (spilled or price.get("contract_id") in contracts)
    )


class Verification:
    """One export, read line by line."""

    def __init__(self, signatures: Signatures) -> None:
        self.report = Report()
        self.header: dict[str, Any] = {}
        self._signatures = signatures
        self._invoices = Invoices(self.report)
        self._chain: Chain | None = None
        self._signed_upto: tuple[int, str] = (0, "")
        self._ended = self._whole = False
        # All lines before the one that is taken.
        self.told = hashlib.sha256()

    def take(self, record: dict[str, Any]) -> None:
        """The next record."""
        kind = record["record"]
        if self._chain is None:
            if kind != "header" or record["version"] != VERSION:
                raise NotAnExport(
                    f"it does not begin with the header of an export of version {VERSION}; one of an earlier "
                    "version is checked by the taas-verify of that version, or exported again"
                )
            self.header = record
            self._chain = Chain(record, self.report, self._invoices)
        elif self._ended:
            self.report.differs("there are records after the end")
        elif kind == "entry":
            self._chain.add(record)
        elif kind == "price":
            self._chain.price(record)
        elif kind == "checkpoint":
            self._checkpoint(record, self._chain)
        elif kind == "invoice":
            self._invoices.take(record, self.header["tenant"]["id"], self._signatures)
        elif kind == "end":
            self._end(record, self._chain)
        else:
            self.report.notes.append(f"records of the kind {kind!r} are not known here and were not checked")

    def _checkpoint(self, record: dict[str, Any], chain: Chain) -> None:
        document = record["checkpoint"]
        when = document.get("day") or f"of {day(document['at_ms'])}"
        what = f"checkpoint {when}"
        self.report.checked["checkpoints"] += 1
        self.report.expect(f"{what}: its tenant", document["tenant"], self.header["tenant"]["id"])
        if document["position"] == chain.position:
            self.report.expect(f"{what}: the hash of position {chain.position}", document["hash"], chain.hash)
        else:
            self.report.differs(f"{what}: it is of position {document['position']}, after {chain.position}")
        text = b"taas usage checkpoint 1\n" + canonical(document)
        if self._signatures.check(what, record, text, self.report):
            self._signed_upto = document["position"], document["hash"]

    def _end(self, record: dict[str, Any], chain: Chain) -> None:
        self._ended = True
        text = b"taas usage export 2\n" + record["sha256"].encode()
        self._whole = self._signatures.check("end", record, text, self.report) and (
            record["sha256"] == self.told.hexdigest()
        )
        self.report.expect("end: its number of entries", record["entries"], self.report.checked["entries"])
        self.report.expect(
            "end: its amount in pico-dollars", int(record["amount_picousd"]), self.report.amount
        )
        self.report.expect("end: the last position", self.header["last"], chain.position)

    def finish(self) -> None:
        """After the last record."""
        if self._chain is None:
            raise NotAnExport("none of its lines is a record" if self.report.differences else "it is empty")
        if not self._ended:
            self.report.differs("the export is cut off: it has no end")
        if self._chain.position and self._signed_upto != (self._chain.position, self._chain.hash):
            self.report.differs(
                f"no signed checkpoint covers the entries up to position {self._chain.position}"
            )
        self._invoices.compare(self.header)
        if not self._whole and not self.report.differences:
            self.report.differs(
                "these are not the lines that were exported: an invoice, a note or a price that nothing else "
                "names was left out, put in or changed"
            )


def records(path: Path, report: Report, told: Any) -> Iterator[dict[str, Any]]:
    """The lines of the export; what is no record is noted. `told` is told each, once it was taken."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES_MAX):
                number += 1
                try:
                    record = json.loads(line.decode())
                    if not isinstance(record["record"], str):
                        raise TypeError
                except (ValueError, TypeError, KeyError, RecursionError):
                    report.differs(f"line {number}: it is no record")
                    continue
                yield record
                told.update(line)
    except OSError as exc:
        raise NotAnExport(f"{path} cannot be read: {exc}") from exc


def verify(path: Path, key: Path) -> Verification:
    """Read and check an export. Raises NotAnExport."""
    verification = Verification(Signatures(key))
    report = verification.report
    for record in records(path, report, verification.told):
        try:
            verification.take(record)
        except NOT_AS_IT_MUST_BE as exc:
            where = f" (position {record['position']})" if "position" in record else ""
            report.differs(
                f"a record {record['record']}{where} is not as it must be: {type(exc).__name__}: {exc}"
            )
    try:
        verification.finish()
    except NOT_AS_IT_MUST_BE as exc:
        report.differs(f"its invoices are not as they must be: {type(exc).__name__}: {exc}")
    return verification


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="taas-verify", description=(__doc__ or "").split("\n\n", 1)[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "export", type=Path, metavar="EXPORT", help="what `taas export --format ndjson` wrote"
    )
    parser.add_argument("--key", type=Path, required=True, metavar="PUBLIC", help="the public key (PEM)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    given = parser.parse_args()
    try:
        verification = verify(given.export, given.key)
    except NotAnExport as exc:
        parser.exit(2, f"taas-verify: {exc}\n")
    report, header = verification.report, verification.header
    if given.json:
        print(json.dumps({
            "good": not report.differences, "tenant": header["tenant"]["id"], "from_ms": header["from_ms"],
            "until_ms": header["until_ms"], "checked": report.checked, "amount": plain(report.amount),
            "differences": report.differences, "notes": report.notes,
        }, indent=2))  # fmt: skip
        sys.exit(1 if report.differences else 0)
    print(f"usage of {header['tenant']['name']} ({header['tenant']['id']}) that was recorded from "
          f"{day(header['from_ms'])} to {day(header['until_ms'])} UTC")  # fmt: skip
    print("checked: " + ", ".join(f"{count:,} {what}" for what, count in report.checked.items()))
    print(f"owed for it: {usd(report.amount)} USD")
    for note in report.notes:
        print(f"note: {note}")
    for difference in report.differences[:SHOWN_MAX]:
        print(f"DIFFERS: {difference}")
    if len(report.differences) > SHOWN_MAX:
        print(f"and {len(report.differences) - SHOWN_MAX:,} more")
    print("not as it was recorded" if report.differences else
          f"good: all is as it was recorded and signed by the key {verification._signatures.id}")  # fmt: skip
    sys.exit(1 if report.differences else 0)


if __name__ == "__main__":
    main()
