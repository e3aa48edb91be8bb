"""The legal object: an invoice or a credit note as canonical JSON (RFC 8785 for what it holds: texts, whole
numbers, null, lists and objects), its SHA-256 and its signature. Pure.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.catalogue.money import ZERO, Money
from billing.invoices.lines import ROUNDING, Bill, Earlier, Line, Terms, Tier, exact_string
from billing.ledger.chain_entry import canonical
from billing.moments import utc
from billing.wire.evidence import signed_by

VERSION: Final = 1
_SIGNED: Final = b"taas invoice 1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a document says that the ledger does not: names as they were, and the period. `unpriced` and
    `quarantined`: requests of the period that are on no invoice. `reconciliation`: as `open_findings` has it;
    None of invoices from before it was listed.
    """

    issuer: str
    issued_ms: int
    tenant: str
    tenant_name: str
    period: str
    from_ms: int
    until_ms: int
    zone: str
    project_names: Mapping[str, str]
    unpriced: int = 0
    quarantined: int = 0
    reconciliation: Mapping[str, Any] | None = None


def invoice_document(
    number: str,
    facts: Facts,
    terms: Terms,
    bill: Bill,
    *,
    earlier: Sequence[Earlier],
    credits: Sequence[tuple[str, Money]],
    upto: int,
) -> bytes:
    """`earlier`: periods of which usage came late. `credits`: what is taken of each. `upto`: the last
    transaction of the ledger that was counted.
    """
    reconciliation = {} if facts.reconciliation is None else {"reconciliation": facts.reconciliation}
    return canonical(
        {
            **_head("invoice", number, facts),
            **reconciliation,
            "ledger_upto": upto,
            "rounding": ROUNDING,
            "terms": {
                "day": terms.day,
                "tax": {"name": terms.tax_name, "basis_points": terms.tax_basis_points},
                "commitment": str(terms.commitment),
                "tiers": _tiers(terms.tiers),
                "prorated": None
                if terms.prorated is None
                else {"days": terms.prorated[0], "of_days": terms.prorated[1]},
            },
            "earlier": [
                {
                    "period": each.period,
                    "billed": str(Money(each.billed)),
                    "tiers": _tiers(each.tiers),
                    "unused": str(each.unused),
                }
                for each in earlier
            ],
            "lines": [shown(number, line) for number, line in enumerate(bill.lines, 1)],
            "project_names": dict(facts.project_names),
            "not_billed": {"unpriced": facts.unpriced, "quarantined": facts.quarantined},
            "net": str(bill.net),
            "tax": str(bill.tax),
            "total": str(bill.total),
            **_due(bill.total, credits),
        }
    )


def credit_note_document(
    number: str,
    corrects: str,
    reason: str,
    facts: Facts,
    terms: Terms,
    line: Line,
    tax: Money,
    credits: Sequence[tuple[str, Money]],
) -> bytes:
    """What is given back of an invoice: amounts are negative. `credits`: what of it is granted as credits."""
    return canonical(
        {
            **_head("credit_note", number, facts),
            "corrects": corrects,
            "reason": reason,
            "terms": {"tax": {"name": terms.tax_name, "basis_points": terms.tax_basis_points}},
            "lines": [shown(1, line)],
            "net": str(line.amount),
            "tax": str(tax),
            "total": str(line.amount + tax),
            **_due(line.amount + tax, credits),
        }
    )


def _due(total: Money, credits: Sequence[tuple[str, Money]]) -> dict[str, Any]:
    """What credits pay, and what they leave."""
    return {
        "credits": [{"credit": grant, "amount": str(amount)} for grant, amount in credits],
        "due": str(total - sum((amount for _, amount in credits), ZERO)),
    }


def _tiers(tiers: Sequence[Tier]) -> list[dict[str, Any]]:
    return [{"above": str(each.above), "percent": each.percent} for each in tiers]


def _head(kind: str, number: str, facts: Facts) -> dict[str, Any]:
    return {
        "document": kind,
        "version": VERSION,
        "number": number,
        "currency": "USD",
        "issuer": facts.issuer,
        "issued_ms": facts.issued_ms,
        "tenant": {"id": facts.tenant, "name": facts.tenant_name},
        "period": {
            "name": facts.period,
            "from_ms": facts.from_ms,
            "until_ms": facts.until_ms,
            "from": utc(facts.from_ms),
            "until": utc(facts.until_ms),
            "time_zone": facts.zone,
        },
    }


def shown(number: int, line: Line) -> dict[str, Any]:
    """A line as the document has it: `exact` to the pico-dollar, `amount` to the cent."""
    return {
        "line": number, "type": line.type, **line.what, "exact": exact_string(line.exact),
        "amount": str(line.amount),
    }  # fmt: skip


def sha256(document: bytes) -> str:
    return hashlib.sha256(document).hexdigest()


def signed(document: bytes, key: Ed25519PrivateKey) -> tuple[str, str]:
    """The id of the key and its signature (Ed25519, base64) of `taas invoice 1`, a line feed and the
    document's SHA-256 in hex.
    """
    return signed_by(key, _SIGNED + sha256(document).encode())
