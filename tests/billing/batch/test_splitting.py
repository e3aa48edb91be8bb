"""However the bytes of an input are divided into pieces, its lines are the same."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.batch.splitting import NotRequests, RawLine, split_jsonl, split_requests

CAP = 64
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=6), JSON, max_size=4), max_size=6)


@st.composite
def pieces_of(draw: st.DrawFn, content: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=12)))
    return [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]


def places(lines: Iterable[RawLine], content: bytes) -> list[RawLine]:
    """The lines; each is where it says it is."""
    found = list(lines)
    for line in found:
        assert line.text is None or content[line.start : line.start + line.length] == line.text
        assert (line.text is None) == (line.length > CAP)
    return found


@given(st.data(), st.lists(st.binary(max_size=90).filter(lambda text: b"\n" not in text), max_size=8))
def test_jsonl_splits_at_line_ends_wherever_it_is_cut(data: st.DataObject, texts: list[bytes]) -> None:
    content = b"\n".join(texts)
    found = places(split_jsonl(data.draw(pieces_of(content)), CAP), content)
    wanted = [(number, text) for number, text in enumerate(texts, 1) if len(text) > CAP or text.strip()]
    assert [(line.number, line.length) for line in found] == [(n, len(text)) for n, text in wanted]


@given(st.data(), OBJECTS, st.sampled_from([None, 1]))
def test_requests_are_the_elements_of_the_array(
    data: st.DataObject, objects: list[dict[str, object]], indent: int | None
) -> None:
    ascii_only = data.draw(st.booleans())
    content = json.dumps({"requests": objects}, indent=indent, ensure_ascii=ascii_only).encode(
        "utf-8", "replace"
    )
    found = places(split_requests(data.draw(pieces_of(content)), CAP), content)
    assert len(found) == len(objects)
    for line, element in zip(found, json.loads(content)["requests"], strict=True):
        assert json.loads(content[line.start : line.start + line.length]) == element


@given(st.lists(st.text(alphabet='"\\{}a', max_size=8), max_size=4))
def test_an_escape_may_be_cut_in_two(texts: list[str]) -> None:
    content = json.dumps({"requests": [{"custom_id": text} for text in texts]}).encode()
    found = places(split_requests([bytes([byte]) for byte in content], CAP), content)
    assert [json.loads(line.text or b"")["custom_id"] for line in found] == texts


@given(st.data(), JSON)
def test_any_other_body_is_refused_or_has_no_requests(data: st.DataObject, body: object) -> None:
    content = json.dumps(body).encode("utf-8", "replace")
    with pytest.raises(NotRequests):
        list(split_requests(data.draw(pieces_of(content)), CAP))


@pytest.mark.parametrize(
    "body",
    [
        "", "{", '{"requests":', '{"requests":[{}', '{"requests":[{},]}', '{"requests":[1]}', "[{}]",
        '{"requests":[{}{}]}', '{"requests":[{}],"more":1}', '{"requests":[{}]}x', '{"requests":[,{}]}',
        '{"other":[{}]}', '{"requests":[[{}]]}',
    ],
)  # fmt: skip
def test_a_broken_body_is_refused(body: str) -> None:
    with pytest.raises(NotRequests):
        list(split_requests([body.encode()], CAP))
