"""Forms are read alike however their bytes are divided into pieces, and the SDK's own form is one of them."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.batch.multipart import FormReader, NotAForm
from tests.billing.batch.test_splitting import pieces_of


def form_of(content: bytes, filename: str, fields: dict[str, str]) -> tuple[str, bytes]:
    request = httpx.Request("POST", "http://x", data=fields, files={"file": (filename, content)})
    return request.headers["content-type"], request.read()


@given(
    st.data(),
    st.binary(max_size=300),
    st.dictionaries(st.sampled_from(["purpose", "a"]), st.text(max_size=9)),
)
def test_a_form_has_its_file_and_fields(data: st.DataObject, content: bytes, fields: dict[str, str]) -> None:
    kind, body = form_of(content, "input.jsonl", fields)
    reader = FormReader(kind)
    found = b"".join(piece for arrived in data.draw(pieces_of(body)) for piece in reader.feed(arrived))
    assert found == content
    assert reader.complete
    assert reader.form.filename == "input.jsonl"
    assert reader.form.fields == {
        name: value.encode("utf-8", "replace").decode() for name, value in fields.items()
    }


@given(st.data(), st.binary(max_size=300))
def test_bytes_like_a_boundary_are_content(data: st.DataObject, noise: bytes) -> None:
    kind = "multipart/form-data; boundary=zz"
    content = b"\r\n--z" + noise.replace(b"z", b"") + b"\r\n--z\r\n-"
    body = (
        b'--zz\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n' + content + b"\r\n--zz--"
    )
    reader = FormReader(kind)
    found = b"".join(piece for arrived in data.draw(pieces_of(body)) for piece in reader.feed(arrived))
    assert found == content


def test_a_form_that_breaks_off_is_not_complete() -> None:
    kind, body = form_of(b"content", "f", {"purpose": "batch"})
    reader = FormReader(kind)
    list(reader.feed(body[:-4]))
    assert not reader.complete


@pytest.mark.parametrize(
    "kind", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=a"]
)
def test_another_content_type_is_no_form(kind: str) -> None:
    with pytest.raises(NotAForm):
        FormReader(kind)


def test_a_form_has_one_file_and_small_fields() -> None:
    kind, body = form_of(b"", "f", {"purpose": "x" * 5_000})
    with pytest.raises(NotAForm):
        list(FormReader(kind).feed(body))
    files = [("file", ("f", b"1")), ("file", ("g", b"2"))]
    request = httpx.Request("POST", "http://x", files=files)
    with pytest.raises(NotAForm):
        list(FormReader(request.headers["content-type"]).feed(request.read()))
