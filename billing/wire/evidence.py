"""Evidence of an instance, for an auditor: what runs, from which weights, as whom, where it listens, who may
call it. It owns the document, its signature (Ed25519) and how two documents are compared. Pure.

The document has sections. Their SHA-256 digests are signed, each by name, so that whoever checks the document
offline learns which section was changed.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

VERSION: Final = 1
_SIGNED: Final = b"taas evidence 1\n"
# Sections that change without anything having changed.
_MOMENTS: Final = frozenset({"issued"})


class EvidenceError(ValueError):
    """Not evidence, or not a key. The message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEngine:
    """An engine as its machine shows it. `weights`: the SHA-256 of each file of its model, by name.
    `command`, `os_user` and `listening`: as the kernel says. `requests_logged`: whether it may write requests
    into a log. `own_user`: whether nothing but this model's engines has its OS user; only a private model can
    have one. `read_ms`: when.
    """

    epoch: str
    engine: str
    engine_version: str
    command: tuple[str, ...]
    os_user: str
    listening: tuple[str, ...]
    requests_logged: bool
    weights: Mapping[str, str]
    started_ms: int
    read_ms: int
    own_user: bool = False

    def to_json(self) -> bytes:
        """As a worker writes it into Redis."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, raw: bytes | str) -> "RunningEngine":
        """Read it; unknown fields are ignored. Raises EvidenceError."""
        try:
            fields = orjson.loads(raw)
            return cls(
                epoch=str(fields["epoch"]),
                engine=str(fields["engine"]),
                engine_version=str(fields["engine_version"]),
                command=tuple(map(str, fields["command"])),
                os_user=str(fields["os_user"]),
                listening=tuple(map(str, fields["listening"])),
                requests_logged=fields["requests_logged"] is not False,
                weights={str(name): str(digest) for name, digest in fields["weights"].items()},
                started_ms=int(fields["started_ms"]),
                read_ms=int(fields["read_ms"]),
                own_user=fields.get("own_user") is True,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise EvidenceError(f"not an engine's facts: {exc!r}") from exc


def make_key() -> str:
    """A new private key, as PEM."""
    made = Ed25519PrivateKey.generate()
    return made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def read_private_key(pem: str) -> Ed25519PrivateKey:
    """Raises EvidenceError."""
    try:
        key = load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError) as exc:
        raise EvidenceError("not a private key in PEM") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise EvidenceError("not an Ed25519 key")
    return key


def read_public_key(pem: str) -> Ed25519PublicKey:
    """Raises EvidenceError."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, TypeError) as exc:
        raise EvidenceError("not a public key in PEM") from exc
    if not isinstance(key, Ed25519PublicKey):
        raise EvidenceError("not an Ed25519 key")
    return key


def public_pem(key: Ed25519PrivateKey) -> str:
    """The public half."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def sign(sections: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """The document. Its sections hold texts, integers, truth values, null, and lists and objects of these."""
    digests = {name: _digest(section) for name, section in sections.items()}
    name, signature = signed_by(key, _signed_text(digests))
    return {
        "version": VERSION,
        "evidence": dict(sections),
        "digests": digests,
        "key": name,
        "signature": signature,
    }


def signed_by(key: Ed25519PrivateKey, text: bytes) -> tuple[str, str]:
    """The id of the key, and its signature of these bytes (Ed25519, base64)."""
    return key_id(key.public_key()), base64.b64encode(key.sign(text)).decode()


def key_id(key: Ed25519PublicKey) -> str:
    """A short name of a public key."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def check(document: Any, key: Ed25519PublicKey) -> list[str]:
    """What is wrong with a document, empty if it is as it was signed. Raises EvidenceError if it is none."""
    sections, digests = _parts(document)
    try:
        signature = base64.b64decode(document["signature"], validate=True)
        key.verify(signature, _signed_text(digests))
    except (InvalidSignature, ValueError):
        by = "" if document.get("key") == key_id(key) else f" It names another key, {document.get('key')}."
        return [f"signature: the digests are not those that this key has signed.{by}"]
    found = [f"{name}: added after it was signed" for name in sections if name not in digests]
    found += [f"{name}: removed after it was signed" for name in digests if name not in sections]
    changed = (name for name in sections if name in digests and digests[name] != _digest(sections[name]))
    return found + [f"{name}: changed after it was signed" for name in changed]


def differences(before: Any, now: Any) -> list[str]:
    """What two documents say differently, by path; moments apart. Raises EvidenceError if one is none."""
    earlier, later = (_parts(document)[0] for document in (before, now))
    return [
        line
        for name in sorted(earlier.keys() | later.keys())
        if name not in _MOMENTS
        for line in _differences(name, earlier.get(name), later.get(name))
    ]


def _differences(path: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _differences(f"{path}.{name}", before.get(name), now.get(name))
    elif isinstance(before, list) and isinstance(now, list):
        yield from (f"{path}: no longer {_said(each)}" for each in before if each not in now)
        yield from (f"{path}: now also {_said(each)}" for each in now if each not in before)
    elif before != now:
        yield f"{path}: was {_said(before)}, is {_said(now)}"


def _said(value: Any) -> str:
    return orjson.dumps(value).decode()


def _parts(document: Any) -> tuple[dict[str, Any], dict[str, str]]:
    if not isinstance(document, dict):
        raise EvidenceError("not evidence: not a JSON object")
    if document.get("version") != VERSION:
        raise EvidenceError(f"not evidence of version {VERSION}")
    sections, digests = document.get("evidence"), document.get("digests")
    if not isinstance(sections, dict) or not isinstance(digests, dict):
        raise EvidenceError("not evidence: `evidence` or `digests` is missing")
    if not isinstance(document.get("signature"), str):
        raise EvidenceError("not evidence: it has no signature")
    return sections, digests


def _digest(section: Any) -> str:
    return hashlib.sha256(orjson.dumps(section, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _signed_text(digests: Mapping[str, str]) -> bytes:
    return _SIGNED + orjson.dumps(digests, option=orjson.OPT_SORT_KEYS)
