"""An invoice or a credit note for people: A4, made from its document alone. The same document makes the same
bytes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape
from zoneinfo import ZoneInfo

import orjson
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.platypus import Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

from billing.invoices.pdf_font import USING, Font, read_font
from billing.moments import utc
from billing.wire.invoice_lines import LINE_TYPES

_TITLES: Final = {"invoice": "Invoice", "credit_note": "Credit note"}
_WIDTHS: Final = [86 * mm, 34 * mm, 30 * mm, 24 * mm]


class _Look:
    """How texts look in a font."""

    def __init__(self, font: Font) -> None:
        self.text, self.bold = font.text, font.bold
        self.small = ParagraphStyle("small", fontName=font.text, fontSize=7.5, leading=9.5)
        self.right = ParagraphStyle("right", self.small, alignment=2)
        self.body = ParagraphStyle("body", fontName=font.text, fontSize=9.5, leading=13)
        self.title = ParagraphStyle("title", fontName=font.bold, fontSize=18, leading=24)
        self.grey = ParagraphStyle("grey", self.small, textColor=colors.HexColor("#555555"))

    def number(self, canvas: Any, pages: Any) -> None:
        """Of each page."""
        canvas.setFont(self.text, 7.5)
        canvas.drawRightString(A4[0] - 18 * mm, 10 * mm, f"page {pages.page}")


def make_pdf(document: bytes, signature: str | None, font: Path | None = None) -> bytes:
    """The pages of a document, with its SHA-256 and its signature at the end. `font`: a TrueType font in
    place of our own. Raises Conflict if that cannot be used.
    """
    with USING:
        return _pages(document, signature, font)


def _pages(document: bytes, signature: str | None, font: Path | None) -> bytes:
    used = read_font(font)
    look, said = _Look(used), orjson.loads(document)
    shown = _in_letters(said, used)
    title = f"{_TITLES[shown['document']]} {shown['number']}"
    target = BytesIO()
    pages = SimpleDocTemplate(
        target,
        pagesize=A4,
        leftMargin=18 * mm,
        rightMargin=18 * mm,
        topMargin=18 * mm,
        bottomMargin=18 * mm,
        title=title,
        author=said["issuer"],
        invariant=1,
        initialFontName=used.text,
    )
    proof = f"SHA-256 of the document: {hashlib.sha256(document).hexdigest()}"
    if signature is not None:
        proof += f"<br/>Signature (Ed25519): {escape(signature)}"
    pages.build(
        [
            Paragraph(escape(title), look.title),
            Spacer(0, 3 * mm),
            Paragraph(_head(shown), look.body),
            Spacer(0, 6 * mm),
            _lines(shown, look),
            Spacer(0, 4 * mm),
            _sums(shown, look),
            Spacer(0, 8 * mm),
            Paragraph(_notes(shown, lacks_letters=shown != said), look.grey),
            Spacer(0, 3 * mm),
            Paragraph(proof, look.grey),
        ],
        onFirstPage=look.number,
        onLaterPages=look.number,
    )
    return target.getvalue()


def _in_letters(value: Any, font: Font) -> Any:
    """All texts of it as the font can show them."""
    if isinstance(value, str):
        return font.shown(value)
    if isinstance(value, list):
        return [_in_letters(each, font) for each in value]
    if isinstance(value, dict):
        return {name: _in_letters(each, font) for name, each in value.items()}
    return value


def _head(shown: Mapping[str, Any]) -> str:
    period = shown["period"]
    rows = [
        ("From", shown["issuer"] or "–"),
        ("To", f"{shown['tenant']['name']} ({shown['tenant']['id']})"),
        ("Period", f"{_local(period, 'from_ms')} until {_local(period, 'until_ms')} ({period['time_zone']})"),
        ("Issued", utc(shown["issued_ms"])),
    ]
    if "corrects" in shown:
        rows += [("Corrects", shown["corrects"]), ("Reason", shown["reason"])]
    return "<br/>".join(f"<b>{name}:</b> {escape(str(value))}" for name, value in rows)


def _local(period: Mapping[str, Any], name: str) -> str:
    """A moment by the tenant's clock, as periods are agreed."""
    moment = datetime.fromtimestamp(period[name] / 1000, ZoneInfo(period["time_zone"]))
    return f"{moment:%Y-%m-%d %H:%M}"


def _lines(shown: Mapping[str, Any], look: _Look) -> Table:
    rows: list[Sequence[Any]] = [["Description", "Quantity", "Price (USD)", "Amount (USD)"]]
    names = shown.get("project_names", {})
    for line in shown["lines"]:
        what, quantity, price = LINE_TYPES[line["type"]].words(line, shown["period"]["name"], names)
        rows.append(
            [
                Paragraph(escape(what), look.small),
                Paragraph(escape(quantity), look.right),
                Paragraph(escape(price), look.right),
                Paragraph(_thousands(line["amount"]), look.right),
            ]
        )
    if len(rows) == 1:
        rows.append([Paragraph("nothing was used", look.small), "", "", ""])
    table = Table(rows, colWidths=_WIDTHS, repeatRows=1)
    table.setStyle(
        TableStyle(
            [
                ("FONT", (0, 0), (-1, 0), look.bold, 7.5),
                ("ALIGN", (1, 0), (-1, 0), "RIGHT"),
                ("LINEBELOW", (0, 0), (-1, 0), 0.8, colors.black),
                ("LINEBELOW", (0, 1), (-1, -1), 0.25, colors.HexColor("#cccccc")),
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("TOPPADDING", (0, 0), (-1, -1), 2),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
            ]
        )
    )
    return table


def _sums(shown: Mapping[str, Any], look: _Look) -> Table:
    tax = shown["terms"]["tax"]
    percent = f"{tax['basis_points'] / 100:g} %"
    rows = [
        ["Net", _thousands(shown["net"])],
        [f"{tax['name'] or 'Tax'} {percent}", _thousands(shown["tax"])],
    ]
    rows.append(["Total", _thousands(shown["total"])])
    rows += [
        [f"Credit {each['credit']}", _thousands(f"-{each['amount']}".removeprefix("--"))]
        for each in shown.get("credits", ())
    ]
    rows.append(["Due (USD)", _thousands(shown["due"])])
    table = Table(rows, colWidths=[80 * mm, 24 * mm], hAlign="RIGHT")
    table.setStyle(
        TableStyle(
            [
                ("FONT", (0, 0), (-1, -1), look.text, 9),
                ("FONT", (0, -1), (-1, -1), look.bold, 10),
                ("ALIGN", (1, 0), (1, -1), "RIGHT"),
                ("LINEABOVE", (0, -1), (-1, -1), 0.8, colors.black),
            ]
        )
    )
    return table


def _thousands(amount: str) -> str:
    """`-1234.50` as `-1,234.50`."""
    whole, _, cents = amount.partition(".")
    sign = "-" if whole.startswith("-") else ""
    return f"{sign}{int(whole.removeprefix('-')):,}.{cents}"


def _notes(shown: Mapping[str, Any], *, lacks_letters: bool) -> str:
    notes = []
    if lacks_letters:
        notes.append("Letters that the font of this page lacks are shown without their marks, or as ?.")
    if "rounding" in shown:
        notes.append(f"Rounding: {escape(shown['rounding'])}.")
    if part := shown["terms"].get("prorated"):
        notes.append(
            f"The period has {part['days']} days instead of {part['of_days']}: of the commitment, and of the "
            "amounts at which discounts begin, it has that part."
        )
    left = [f"{why} {count}" for why, count in shown.get("not_billed", {}).items() if count]
    if left:
        notes.append(f"Requests that are on no invoice yet: {escape(', '.join(left))}.")
    if said := shown.get("reconciliation"):
        notes.append(_reconciliation(said))
    notes.append("The legal document is the JSON that this was made from.")
    return "<br/>".join(notes)


def _reconciliation(said: Mapping[str, Any]) -> str:
    audited = said["audited_ms"]
    until = "no engine with counters was used" if audited is None else f"compared until {utc(audited)}"
    if not said["findings"]:
        return f"Reconciliation with the counters of the engines: {until}; nothing is open."
    found = "; ".join(escape(f"{each['what']} ({each['finding']})") for each in said["findings"])
    return f"Reconciliation with the counters of the engines: {until}. Still open: {found}."
