"""An invoice or a credit note for people: A4, made from its document alone. The same document makes the same
bytes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from io import BytesIO
from typing import Any, Final
from xml.sax.saxutils import escape
from zoneinfo import ZoneInfo

import orjson
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.platypus import Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

from billing.moments import utc
from billing.wire.invoice_lines import LINE_TYPES

_TITLES: Final = {"invoice": "Invoice", "credit_note": "Credit note"}
_SMALL: Final = ParagraphStyle("small", fontName="Helvetica", fontSize=7.5, leading=9.5)
_RIGHT: Final = ParagraphStyle("right", _SMALL, alignment=2)
_BODY: Final = ParagraphStyle("body", fontName="Helvetica", fontSize=9.5, leading=13)
_TITLE: Final = ParagraphStyle("title", fontName="Helvetica-Bold", fontSize=18, leading=24)
_GREY: Final = ParagraphStyle("grey", _SMALL, textColor=colors.HexColor("#555555"))
_WIDTHS: Final = [86 * mm, 34 * mm, 30 * mm, 24 * mm]


def make_pdf(document: bytes, signature: str | None) -> bytes:
    """The pages of a document, with its SHA-256 and its signature at the end."""
    shown = orjson.loads(document)
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
        author=shown["issuer"],
        invariant=1,
    )
    proof = f"SHA-256 of the document: {hashlib.sha256(document).hexdigest()}"
    if signature is not None:
        proof += f"<br/>Signature (Ed25519): {escape(signature)}"
    pages.build(
        [
            Paragraph(escape(title), _TITLE),
            Spacer(0, 3 * mm),
            Paragraph(_head(shown), _BODY),
            Spacer(0, 6 * mm),
            _lines(shown),
            Spacer(0, 4 * mm),
            _sums(shown),
            Spacer(0, 8 * mm),
            Paragraph(_notes(shown), _GREY),
            Spacer(0, 3 * mm),
            Paragraph(proof, _GREY),
        ],
        onFirstPage=_numbered,
        onLaterPages=_numbered,
    )
    return target.getvalue()


def _numbered(canvas: Any, pages: Any) -> None:
    canvas.setFont("Helvetica", 7.5)
    canvas.drawRightString(A4[0] - 18 * mm, 10 * mm, f"page {pages.page}")


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


def _lines(shown: Mapping[str, Any]) -> Table:
    rows: list[Sequence[Any]] = [["Description", "Quantity", "Price (USD)", "Amount (USD)"]]
    names = shown.get("project_names", {})
    for line in shown["lines"]:
        what, quantity, price = LINE_TYPES[line["type"]].words(line, shown["period"]["name"], names)
        rows.append(
            [
                Paragraph(escape(what), _SMALL),
                Paragraph(escape(quantity), _RIGHT),
                Paragraph(escape(price), _RIGHT),
                Paragraph(_thousands(line["amount"]), _RIGHT),
            ]
        )
    if len(rows) == 1:
        rows.append([Paragraph("nothing was used", _SMALL), "", "", ""])
    table = Table(rows, colWidths=_WIDTHS, repeatRows=1)
    table.setStyle(
        TableStyle(
            [
                ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", 8),
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


def _sums(shown: Mapping[str, Any]) -> Table:
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
    table = Table(rows, colWidths=[60 * mm, 24 * mm], hAlign="RIGHT")
    table.setStyle(
        TableStyle(
            [
                ("FONT", (0, 0), (-1, -1), "Helvetica", 9),
                ("FONT", (0, -1), (-1, -1), "Helvetica-Bold", 10),
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


def _notes(shown: Mapping[str, Any]) -> str:
    notes = []
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
