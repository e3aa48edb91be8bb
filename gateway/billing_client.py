"""Asks billing on a caller's behalf. It chooses the billing process; it knows no route and no answer."""

from collections.abc import Mapping
from typing import Final

import httpx

from billing.wire.certificates import checked_by

_TIMEOUT_S: Final = 5.0
# A process on a dead machine gives no answer at all, so the next one is asked soon.
_CONNECT_TIMEOUT_S: Final = 1.0


class BillingClient:
    """The admin APIs of one installation. Any of them can answer; the one that answered last is asked
    first.
    """

    def __init__(self, urls: str, service_key: str) -> None:
        """`urls` is one, or several with commas between them."""
        self._urls = [url.strip().rstrip("/") for url in urls.split(",") if url.strip()]
        self._http = httpx.AsyncClient(
            headers={"authorization": f"Bearer {service_key}"},
            timeout=httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            # The service key is for billing only; a proxy from the environment would read it.
            trust_env=False,
            verify=checked_by(*self._urls),
        )

    async def get(
        self, path: str, params: Mapping[str, str] | str, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The answer of the first that gives one. Raises httpx.HTTPError when none does. `params`: or a whole
        query. `headers`: in place of those with the service key.
        """
        failure: httpx.HTTPError = httpx.ConnectError("no admin API is set")
        for url in tuple(self._urls):
            try:
                answer = await self._http.get(url + path, params=params, headers=headers)
            except httpx.TransportError as exc:
                failure = exc
                continue
            self._urls.sort(key=lambda known: known != url)
            return answer
        raise failure
