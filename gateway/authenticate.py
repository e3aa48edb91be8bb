"""Authenticates a caller: reads an API key from the raw headers and finds the key and its tenant. It fails
closed, and every failure gets the same answer.

The key is hashed before any look-up, so that a look-up leaks nothing of it, and the result is compared in
constant time. A key is never logged. Every route accepts `Authorization: Bearer` and `x-api-key`; two keys
that differ are refused.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Iterable
from typing import Final

from billing.wire.secret_forms import ADMIN_KEY_PREFIX
from billing.wire.value import Value
from gateway.catalogue.entries import ApiKey, Model, Tenant
from gateway.catalogue.feed import Catalogue
from gateway.errors import AuthenticationFailed, DependencyUnavailable, ModelNotFound, PermissionDenied

KEY_BYTES_MAX = 256
_ADMIN_KEY: Final = ADMIN_KEY_PREFIX.encode()


class Caller(Value, frozen=True):
    """An authenticated caller. `line`: the line of a batch that it sends."""

    key: ApiKey
    tenant: Tenant
    line: str | None = None

    def find_model(self, catalogue: Catalogue, name: str, now_ms: int) -> Model:
        """The model, if this caller may see it now, by the clock that all gateways share. Raises
        ModelNotFound: the same for a model that does not exist, one that this caller may not see, and one
        that is not for sale. Raises DependencyUnavailable while models have not been read.
        """
        model = catalogue.visible.find(self.tenant, name)
        if model is None and not catalogue.loaded:
            raise DependencyUnavailable
        if model is None or not self._may_use(model, now_ms):
            raise ModelNotFound(name)
        return model

    def models(self, catalogue: Catalogue, now_ms: int) -> list[Model]:
        """Those that this caller may see now, by name. Raises DependencyUnavailable while they have not been
        read.
        """
        if not catalogue.loaded:
            raise DependencyUnavailable
        found = {model.name: model for model in catalogue.visible.of(self.tenant)}
        return [found[name] for name in sorted(found) if self._may_use(found[name], now_ms)]

    def _may_use(self, model: Model, now_ms: int) -> bool:
        allowed = self.key.models
        return (allowed is None or model.name in allowed) and model.for_sale_to(self.tenant, now_ms)


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The one key that the headers present. Raises AuthenticationFailed when there is none, more than one,
    or not a key at all; PermissionDenied for an admin key, by its form, whether or not it is one.
    """
    bearer: bytes | None = None
    api_key: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            if bearer is not None or value[:7].lower() != b"bearer ":
                raise AuthenticationFailed
            bearer = value[7:].strip()
        elif name == b"x-api-key":
            if api_key is not None:
                raise AuthenticationFailed
            api_key = value.strip()
    if bearer is not None and api_key is not None and bearer != api_key:
        raise AuthenticationFailed
    found = bearer or api_key
    if (
        not found
        or len(found) > KEY_BYTES_MAX
        or not found.isascii()
        or not found.decode("ascii").isprintable()
    ):
        raise AuthenticationFailed
    if found.startswith(_ADMIN_KEY):
        raise PermissionDenied("An admin key serves no requests to models; use an API key of a tenant.")
    return found


def presented_bearer(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The only bearer that the headers present. Raises AuthenticationFailed if there is none, or another."""
    found = [value for name, value in headers if name == b"authorization"]
    if len(found) != 1 or found[0][:7].lower() != b"bearer ":
        raise AuthenticationFailed
    return found[0][7:].decode("latin-1")


def authenticate(
    headers: Iterable[tuple[bytes, bytes]], catalogue: Catalogue, now_ms: int
) -> Awaitable[Caller]:
    """The caller behind the headers; `now_ms` by the clock that all gateways share.

    Raises AuthenticationFailed (unknown, revoked, expired: one and the same body), PermissionDenied for a
    suspended or archived tenant or project, DependencyUnavailable when the key is not cached and Redis does
    not answer.
    """
    return caller_with(hashlib.sha256(presented_key(headers)).hexdigest(), catalogue, now_ms)


async def caller_with(key_hash: str, catalogue: Catalogue, now_ms: int, line: str | None = None) -> Caller:
    """The caller whose key has this hash. Raises as `authenticate` does."""
    known = catalogue.cached_key(key_hash) or await catalogue.find_key(key_hash)
    if known is None:
        raise AuthenticationFailed
    key, tenant = known
    if not hmac.compare_digest(key.key_hash, key_hash):
        raise AuthenticationFailed
    if key.expires_at_ms is not None and key.expires_at_ms <= now_ms:
        raise AuthenticationFailed
    if not tenant.active:
        raise PermissionDenied("The account is suspended.")
    if key.archived:
        raise PermissionDenied("The project of this key is archived.")
    return Caller(key, tenant, line)
