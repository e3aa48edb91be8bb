"""What searches for canaries finds them, in every form in which a program may have stored them."""

import base64
import json
import secrets

import pytest

from tests.fixtures.retained import Needles, forms, forms_of_ids


@pytest.mark.parametrize("form", sorted(forms("x" * 8)))
@pytest.mark.parametrize("around", ["", "a", "ab", '{"k": "'])
def test_a_word_is_found_in_every_form(form: str, around: str) -> None:
    word, needles = f"zq{secrets.token_hex(8)}", Needles()
    needles.add("it", word)
    written = {
        "plain": f"{around}{word}…".encode(),
        "json": json.dumps(f"{around}{word}é").encode(),
        "url": f"?q={around}{word}".encode(),
        "reversed": f"{around}{word}".encode()[::-1],
        "utf-16-le": f"{around}{word}".encode("utf-16-le"),
        "utf-16-be": f"{around}{word}".encode("utf-16-be"),
        "hex": f"{around}{word}".encode().hex().encode(),
        "HEX": f"{around}{word}".encode().hex().upper().encode(),
        "json-escaped": "".join(f"\\u{ord(c):04x}" for c in f"{around}{word}").encode(),
        "JSON-escaped": "".join(f"\\u{ord(c):04X}" for c in f"{around}{word}").encode(),
        "url-escaped": "".join(f"%{ord(c):02x}" for c in f"{around}{word}").encode(),
        "URL-escaped": "".join(f"%{ord(c):02X}" for c in f"{around}{word}").encode(),
    }.get(form)
    if written is None:
        encode = base64.urlsafe_b64encode if "url" in form else base64.b64encode
        written = encode(f"{around}{word} and more".encode())
    assert needles.hits([("here", written)])
    assert not needles.hits([("here", b"something else")])


@pytest.mark.parametrize("form", sorted(forms_of_ids([1, 2, 3, 4])))
def test_token_ids_are_found_in_every_form(form: str) -> None:
    ids = [secrets.randbelow(40_000) + 1_000 for _ in range(9)]
    needles = Needles()
    needles.add_ids("them", ids)
    assert needles.hits([("here", b"[7, " + forms_of_ids(ids)[form] + b", 8]")])
