"""What is to run, from the admin API, with the service key. While that is away, the last answer holds."""

from collections.abc import Callable, Sequence
from typing import Final

import httpx

from billing.wire.certificates import checked_by
from serving.launching.launcher import Launch

_TIMEOUT_S: Final = 3.0
_ROWS_MAX: Final = 1000


class Wanted:
    """`urls`: of admin APIs; the first that answers is believed."""

    def __init__(self, urls: Sequence[str], key: str, note: Callable[[str], None]) -> None:
        self._urls = urls
        self._note = note
        self._told = False
        self._clients = {
            url: httpx.AsyncClient(
                base_url=url.rstrip("/"),
                headers={"authorization": f"Bearer {key}"},
                timeout=_TIMEOUT_S,
                trust_env=False,
                verify=checked_by(url),
            )
            for url in urls
        }
        self._last: Sequence[Launch] | None = None

    async def read(self) -> Sequence[Launch] | None:
        """None before the first answer: nothing is started or stopped on a guess."""
        why = ""
        for url, client in self._clients.items():
            try:
                answer = await client.get("/admin/v1/launches", params={"limit": _ROWS_MAX})
                answer.raise_for_status()
                self._last = [Launch.from_json(row) for row in answer.json()["data"]]
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as exc:
                why = f"{url} does not say what is to run: {type(exc).__name__}"
                if isinstance(exc, httpx.HTTPStatusError):
                    why = f"{url} does not say what is to run: HTTP {exc.response.status_code}"
                continue
            if self._told:
                self._note("billing answers again")
            self._told = False
            return self._last
        if not self._told:
            self._note(f"{why}; the last it said holds")
        self._told = True
        return self._last

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()
