"""What may stand as the URL of an engine."""

import pytest

from billing.catalogue.instances import check_provider_url, check_url
from billing.refusals import Invalid


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://127.0.0.1:8100", "http://127.0.0.1:8100"),
        ("https://Engine.example/v1/", "https://engine.example"),
        ("http://[::1]:80/base/v1", "http://[::1]:80/base"),
    ],
)
def test_a_url_is_kept_without_its_v1(given: str, kept: str):
    assert check_url(given) == kept


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "ftp://h", "file:///etc/passwd", "http://", "http://u:p@h", "http://h?x", "http://h#x",
        "http://h:99999", "http://h:0", "http://h:x", "http://h/%2e", "http://h /", "http://ä",
        "javascript:alert(1)", "http://h\n", "http://[::1", "//h", "http://h/?",
    ],
)  # fmt: skip
def test_what_is_no_base_url_is_refused(url: str):
    with pytest.raises(Invalid) as refusal:
        check_url(url)
    assert refusal.value.param == "url"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com",
        "http://127.0.0.1:1",
        "http://127.8.9.1",
        "http://[::1]:80",
        "http://localhost",
    ],
)
def test_a_key_may_leave_this_machine_only_encrypted(url: str):
    check_provider_url(check_url(url))


@pytest.mark.parametrize(
    "url", ["http://api.openai.com", "http://10.0.0.1", "http://localhost.example", "http://0.0.0.0"]
)
def test_a_provider_beyond_this_machine_without_tls_is_refused(url: str):
    with pytest.raises(Invalid) as refusal:
        check_provider_url(check_url(url))
    assert refusal.value.param == "url"
