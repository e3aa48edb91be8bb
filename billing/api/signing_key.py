"""The key that signs evidence, invoices and checkpoints."""

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from billing.refusals import Conflict
from billing.wire.evidence import EvidenceError, read_private_key
from billing.wire.private_file import NotPrivate, read_private_file

_KEY_BYTES_MAX: Final = 4096


def signing_key(path: Path | None) -> Ed25519PrivateKey:
    """Raises Conflict where there is none, or it cannot be used."""
    if path is None:
        raise Conflict(
            "There is no key to sign with: TAAS_EVIDENCE_KEY_FILE names its file.", code="no_evidence"
        )
    try:
        return read_private_key(read_private_file(path, _KEY_BYTES_MAX).decode("utf-8", "replace"))
    except (NotPrivate, EvidenceError) as exc:
        raise Conflict(f"The key in {path} cannot be used: {exc}.", code="no_evidence") from exc


def checking_key(path: Path | None) -> Ed25519PublicKey | None:
    """Its public half; None where there is no key. Raises Conflict if it cannot be used."""
    return None if path is None else signing_key(path).public_key()
