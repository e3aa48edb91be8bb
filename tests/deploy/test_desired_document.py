"""Any file is read, or refused with its line; nothing else happens."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.desired import document
from deploy.desired.document import INSTANCE, LAUNCH, MODEL, POOL, PRICE
from deploy.desired.yaml_values import DocumentError
from tests.examples import examples

NAMES = st.sampled_from(
    [*MODEL, *POOL, *INSTANCE, *PRICE, *LAUNCH, "models", "pools", "instances", "prices", "m"]
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates() | NAMES
    | st.binary(max_size=4)
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | LEAVES, inner, max_size=5),
    max_leaves=20,
)
SECTIONS = st.sampled_from(["models", "adapters", "pools", "instances", "prices", "cost_prices"])
FILES = st.dictionaries(
    SECTIONS, st.dictionaries(NAMES, st.dictionaries(NAMES, TREES, max_size=4), max_size=3)
)
FEW = settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, content: bytes) -> document.Document | None:
    """None where it is refused, with a line of the file."""
    path.write_bytes(content)
    try:
        return document.read(path)
    except DocumentError as exc:
        name, line, _ = str(exc).removeprefix(str(path.parent)).split(":", 2)
        assert name == f"/{path.name}"
        assert 1 <= int(line) <= content.count(b"\n") + content.count(b"\r") + 2
        return None


@FEW
@given(st.binary(max_size=200) | st.text(alphabet="m:{}[]-,&*!'\"#|>% \n\t0", max_size=60).map(str.encode))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    read(tmp_path / "f.yaml", content)


@FEW
@given(TREES | FILES)
def test_any_tree(tmp_path: Path, tree: Any) -> None:
    read(tmp_path / "f.yaml", yaml.safe_dump(tree).encode("utf-8", "replace"))


@FEW
@given(st.decimals(min_value=0, max_value=10**9, places=6, allow_nan=False, allow_infinity=False))
def test_a_price_is_never_a_float(tmp_path: Path, amount: Decimal) -> None:
    found = read(
        tmp_path / "f.yaml", f"prices:\n  m:\n  - {{input: {amount:f}, output: '{amount:f}'}}\n".encode()
    )
    assert found is not None
    assert found.prices is not None
    (price,) = found.prices["m"]
    assert Decimal(price.fields["input"]) == Decimal(price.fields["output"]) == amount
    assert "E" not in price.fields["input"]


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_what_is_nested_deeply_is_refused(tmp_path: Path, depth: int) -> None:
    assert read(tmp_path / "f.yaml", b"[" * depth) is None


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    assert read(tmp_path / "f.yaml", b"#" * (1 << 20) + b"\n{}") is None


def test_a_file_of_tags_makes_no_objects(tmp_path: Path) -> None:
    assert (
        read(tmp_path / "f.yaml", b"models: {m: {context_tokens: !!python/object/apply:os.getpid []}}\n")
        is None
    )
