"""Evidence: whoever has the public key finds every change, and is told which section it is in."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.wire.evidence import (
    EvidenceError,
    RunningEngine,
    check,
    differences,
    make_key,
    public_pem,
    read_private_key,
    read_public_key,
    sign,
)

KEY = read_private_key(make_key())
PUBLIC = read_public_key(public_pem(KEY))
SECTIONS: dict[str, Any] = {
    "instance": {"instance": "i1", "model": "private", "epoch": "e1"},
    "weights": {"sha256": {"model.safetensors": "ab" * 32, "config.json": "cd" * 32}},
    "process": {
        "command": ["python", "-m", "vllm", "--model", "/m"],
        "os_user": "taas-1 (61184)",
        "listening": ["127.0.0.1:8100"],
        "engine_version": "0.32.0",
    },
    "logging": {"requests_logged": False},
    "callers": {"owner": "ten_a", "tenants": ["ten_a"]},
    "contract": None,
    "issued": {"at_ms": 1},
}


def signed() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(sign(SECTIONS, KEY)))
    return document


def test_evidence_as_it_was_signed_is_good() -> None:
    assert check(signed(), PUBLIC) == []


TAMPERINGS: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "another weight file": ("weights", lambda e: e["weights"]["sha256"].update({"model.safetensors": "ee"})),
    "a weight file left out": ("weights", lambda e: e["weights"]["sha256"].pop("config.json")),
    "another version": ("process", lambda e: e["process"].update(engine_version="0.33.0")),
    "another command": ("process", lambda e: e["process"]["command"].append("--enable-log-requests")),
    "another user": ("process", lambda e: e["process"].update(os_user="root (0)")),
    "another listener": ("process", lambda e: e["process"]["listening"].append("0.0.0.0:9")),
    "another caller": ("callers", lambda e: e["callers"]["tenants"].append("ten_b")),
    "logging": ("logging", lambda e: e["logging"].update(requests_logged=True)),
    "another contract": ("contract", lambda e: e.update(contract={"contract": "c1"})),
    "another time": ("issued", lambda e: e["issued"].update(at_ms=2)),
    "a section left out": ("callers", lambda e: e.pop("callers")),
    "a section more": ("more", lambda e: e.update(more={})),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_change_is_found_and_its_section_named(tampering: str) -> None:
    document, (section, change) = signed(), TAMPERINGS[tampering]
    change(document["evidence"])
    (found,) = check(document, PUBLIC)
    assert found.startswith(f"{section}: ")


@pytest.mark.parametrize("part", ["digests", "signature"])
def test_digests_and_signature_cannot_be_changed_either(part: str) -> None:
    document, other = signed(), copy.deepcopy(SECTIONS)
    other["callers"]["tenants"] = ["ten_b"]
    forged = sign(other, read_private_key(make_key()))
    document["evidence"] = other
    document[part] = forged[part]
    if part == "digests":
        (found,) = check(document, PUBLIC)
        assert found.startswith("signature: ")
    else:
        assert check(document, PUBLIC) != []


def test_evidence_of_another_key_is_refused_by_name() -> None:
    document = sign(SECTIONS, read_private_key(make_key()))
    (found,) = check(document, PUBLIC)
    assert document["key"] in found


@given(st.text(max_size=40) | st.binary(max_size=40).map(repr))
def test_what_is_no_signature_is_refused(text: str) -> None:
    assert check(signed() | {"signature": text}, PUBLIC) != []


@pytest.mark.parametrize("document", [None, [], {}, {"version": 2}, {"version": 1, "evidence": {}}])
def test_what_is_no_evidence_is_said_to_be_none(document: Any) -> None:
    with pytest.raises(EvidenceError):
        check(document, PUBLIC)


def test_what_has_changed_between_two_documents_is_named_by_its_path() -> None:
    now = copy.deepcopy(SECTIONS)
    now["weights"]["sha256"]["config.json"] = "ff" * 32
    now["process"]["listening"].append("0.0.0.0:22")
    now["callers"]["tenants"] = ["ten_a", "ten_b"]
    now["issued"]["at_ms"] = 9
    assert differences(signed(), sign(now, KEY)) == [
        'callers.tenants: now also "ten_b"',
        'process.listening: now also "0.0.0.0:22"',
        f'weights.sha256.config.json: was "{"cd" * 32}", is "{"ff" * 32}"',
    ]
    assert differences(signed(), signed()) == []


def test_an_engines_facts_are_read_as_written() -> None:
    facts = RunningEngine(
        epoch="e",
        engine="vllm",
        engine_version="0.32.0",
        command=("python", "-m", "vllm"),
        os_user="root (0)",
        listening=("127.0.0.1:8100",),
        requests_logged=False,
        weights={"a": "b"},
        started_ms=1,
        read_ms=2,
    )
    assert RunningEngine.from_json(facts.to_json()) == facts
    with pytest.raises(EvidenceError):
        RunningEngine.from_json(b'{"epoch": "e"}')
