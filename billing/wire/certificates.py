"""The certificates that our HTTP clients trust. httpx reads them for each client that it makes, 50 ms of CPU;
here a process reads them once, and not at all for addresses without TLS.
"""

import ssl
from functools import cache

import httpx


def checked_by(*urls: str) -> ssl.SSLContext:
    """The `verify` of a httpx client for these addresses; for any address if there are none."""
    plain = bool(urls) and all(url.startswith("http:") for url in urls)
    return _none() if plain else _trusted()


@cache
def _trusted() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


@cache
def _none() -> ssl.SSLContext:
    """It trusts nobody, so that a TLS connection by mistake fails."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
