"""Certificates are read once a process, and only for TLS."""

import ssl

import httpx

from billing.wire.certificates import checked_by


def test_addresses_without_tls_trust_nobody() -> None:
    plain = checked_by("http://a", "http://b")
    assert plain.cert_store_stats()["x509"] == 0
    assert plain.verify_mode is ssl.CERT_REQUIRED


def test_any_other_address_trusts_what_httpx_trusts_read_once() -> None:
    trusted = checked_by()
    assert checked_by("http://a", "https://b") is checked_by("https://c") is trusted
    assert trusted.cert_store_stats() == httpx.create_ssl_context(trust_env=False).cert_store_stats()
    assert trusted.verify_mode is ssl.CERT_REQUIRED
    assert trusted.check_hostname
