"""The library of scripts: what they are asked has the same names in Python and in Lua, and a change of it
has new names.
"""

import inspect
import re
from pathlib import Path

import pytest

from billing.cell import asks, scripts
from billing.wire import reservation
from billing.wire.limits import Limits

LUA = Path(inspect.getfile(scripts)).parent / "lua"
TEXTS = {path.stem: path.read_text() for path in LUA.glob("*.lua")}
ASKS = {name: getattr(asks, f"{name.capitalize()}Ask") for name in scripts.SCRIPTS}
# What a script hands its `ask` to, and what else it is asked with.
HANDED = {"reserve": ("classes", "places")}
TERMS = {"reserve": asks.ReserveTerms.__annotations__}
# What is made of the terms and candidates of a request.
MADE = {"reserve": {"tenant_plan", "key_plan", "candidates"}}


@pytest.mark.parametrize("name", scripts.SCRIPTS)
def test_a_script_reads_what_it_is_asked_and_nothing_else(name: str) -> None:
    text = TEXTS[name] + "".join(TEXTS[other] for other in HANDED.get(name, ()))
    read = set(re.findall(r"\bask\.(\w+)", text)) | set(
        re.findall(r"cjson\.decode\(args\[1\]\)\.(\w+)", text)
    )
    read |= set(re.findall(r"\bmade\.(\w+)", TEXTS["terms"])) if name in TERMS else set()
    assert read - MADE.get(name, set()) == {*ASKS[name].__annotations__, *TERMS.get(name, ())}


def test_each_field_of_a_reservation_has_its_own_name_in_redis() -> None:
    assert len(set(reservation.FIELDS.values())) == len(reservation.FIELDS)


def test_every_file_is_part_of_the_library() -> None:
    text = scripts.library().text
    assert [name for name in TEXTS if f"\nlocal {name} = " not in text] == []


def test_functions_are_named_after_the_whole_text() -> None:
    """So that gateways of two versions each call their own."""
    names = scripts.library().functions
    assert set(names) == {*scripts.SCRIPTS, *scripts.TENANT_SCRIPTS}
    versions = {name.removesuffix(f"_{script}") for script, name in names.items()}
    [version] = versions
    assert scripts.library().text.startswith(f"#!lua name={version}\n")


def test_what_the_library_keeps_of_a_request_is_the_same_for_all_tenants_with_the_same_limits() -> None:
    """Of 100,000 tenants' own texts hardly any would still be there at the next request."""

    def kept(tenant: str) -> tuple[object, ...]:
        keys = scripts.CellKeys.of(
            "c", request_id=f"req_{tenant}", tenant=tenant, key_id=f"key_{tenant}", model="m"
        )
        command = scripts.reserve_call(
            keys,
            lease_ms=1000,
            cost_mu=1,
            tenant=Limits.of(requests_per_minute=60),
            key=Limits(),
            claim=scripts.Claim(tenant=tenant, candidates=[("i-1", "e-1")], gateway="g"),
            head=b"{}",
            crash_event=b"{}",
        )
        ask, terms, candidates, *_ = command[3 + int(command[2]) :]
        assert tenant in str(ask)
        return terms, candidates

    assert kept("ten_1") == kept("ten_2")
