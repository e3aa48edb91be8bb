"""The certificates that our HTTP clients trust. httpx reads them for each client that it makes, 50 ms of CPU;
here a process reads them once, and not at all for addresses without TLS.
"""

import ssl
from functools import cache
from pathlib import Path

import httpx


def checked_by(*urls: str, ca_file: Path | None = None) -> ssl.SSLContext:
    """The `verify` of a client for these addresses; for any address if there are none. `ca_file`: further
    authorities to trust. Raises OSError if that file cannot be read or holds no certificate.
    """
    plain = bool(urls) and all(url.startswith("http:") for url in urls)
    return _none() if plain else _trusted(ca_file)


@cache
def _trusted(ca_file: Path | None) -> ssl.SSLContext:
    context = httpx.create_ssl_context(trust_env=False)
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    return context


@cache
def _none() -> ssl.SSLContext:
    """It trusts nobody, so that a TLS connection by mistake fails."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
