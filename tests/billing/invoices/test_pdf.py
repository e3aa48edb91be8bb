"""Invoices as PDF: what is shown of letters that the font lacks, and which font it is."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import reportlab

from billing.catalogue.money import Money
from billing.invoices.document import Facts, credit_note_document
from billing.invoices.lines import Line, Terms
from billing.invoices.pdf import make_pdf
from billing.invoices.pdf_font import read_font
from billing.refusals import Conflict

ANOTHER = Path(reportlab.__file__).parent / "fonts" / "VeraIt.ttf"


def note(issuer: str, reason: str) -> bytes:
    facts = Facts(
        issuer=issuer, issued_ms=0, tenant="ten_a", tenant_name="acme", period="2023-10", from_ms=0,
        until_ms=1, zone="UTC", project_names={},
    )  # fmt: skip
    line = Line.of("correction", {"invoice": "INV-000001"}, -(10**12))
    terms = Terms(tax_name="ΦΠΑ", tax_basis_points=2400)
    return credit_note_document("CN-000001", "INV-000001", reason, facts, terms, line, Money(0), [])


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ("Müller & Söhne Łódź İzmir – 5 €", "Müller & Söhne Łódz İzmir – 5 €"),
        ("Spółka z ograniczoną odpowiedzialnością", "Spółka z ograniczona odpowiedzialnoscia"),
        ("a\u0328 e\u0301", "a é"),
        ("株式会社 Lab", "???? Lab"),
        ("Acme\nStr. 1\u202f000 a\u200bb", "Acme Str. 1 000 ab"),
    ],
)
def test_a_letter_that_the_font_lacks_is_no_black_box(said: str, seen: str) -> None:
    font = read_font(None)
    assert font.shown(said) == seen
    assert all(ord(letter) in font.letters for letter in seen)


def test_pages_that_are_made_at_once_are_as_if_they_were_made_alone() -> None:
    document, before = note("Łódź", "é"), sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            made = set(pool.map(lambda _: make_pdf(document, None), range(64)))
    finally:
        sys.setswitchinterval(before)
    assert len(made) == 1


@pytest.mark.parametrize("length", [0, 3_000, 30_000])
def test_a_damaged_font_is_refused(tmp_path: Path, length: int) -> None:
    font = tmp_path / "font.ttf"
    font.write_bytes(ANOTHER.read_bytes()[:length])
    with pytest.raises(Conflict):
        read_font(font)


def test_its_font_is_embedded_and_the_same_document_makes_the_same_bytes() -> None:
    document = note("株式会社 Spółka", "запоздание")
    first = make_pdf(document, None)
    assert (first.count(b"/FontFile2"), b"+BitstreamVeraSans-Bold" in first) == (2, True)
    other = make_pdf(document, None, ANOTHER)
    assert (other.count(b"/FontFile2"), b"+BitstreamVeraSans-Oblique" in other) == (1, True)
    assert make_pdf(document, None) == first != other
    with pytest.raises(Conflict, match="TAAS_INVOICE_FONT_FILE cannot be used"):
        make_pdf(document, None, Path(__file__))
