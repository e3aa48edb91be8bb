"""A small client of the admin API, for the steps of `up`. It turns refusals into steps that failed."""

from typing import Any, Final

import httpx

from billing.wire.certificates import checked_by
from deploy.local.progress import StepFailed

_TIMEOUT_S: Final = 30.0
# As many as the API gives at once.
_PAGE_ROWS: Final = 1000


class AdminApi:
    """The admin API of one home."""

    def __init__(self, url: str, key: str) -> None:
        self._client = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {key}"},
            timeout=_TIMEOUT_S,
            trust_env=False,
            verify=checked_by(url),
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """GET /admin/v1/PATH."""
        return self._answer(self._client.get(f"/admin/v1/{path}", params=query))

    def rows(self, path: str, **query: str) -> list[dict[str, Any]]:
        """The `data` of a listing, all of its pages."""
        page = self.get(path, limit=str(_PAGE_ROWS), **query)
        rows: list[dict[str, Any]] = page["data"]
        while page.get("next") is not None:
            page = self.get(path, limit=str(_PAGE_ROWS), after=page["next"], **query)
            rows += page["data"]
        return rows

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """POST /admin/v1/PATH."""
        return self._answer(self._client.post(f"/admin/v1/{path}", json=body))

    def put(self, path: str, **body: Any) -> dict[str, Any]:
        """PUT /admin/v1/PATH."""
        return self._answer(self._client.put(f"/admin/v1/{path}", json=body))

    def find(self, path: str, query: dict[str, str] | None = None, **wanted: Any) -> dict[str, Any] | None:
        """The first row of a listing whose fields have these values."""
        for row in self.rows(path, **(query or {})):
            if all(row.get(name) == value for name, value in wanted.items()):
                return row
        return None

    def _answer(self, response: httpx.Response) -> dict[str, Any]:
        if response.is_success:
            body: dict[str, Any] = response.json()
            return body
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = response.text[:300]
        request = response.request
        raise StepFailed(
            f"{request.method} {request.url.path}: {response.status_code} {message}",
            "Another key may have been given (TAAS_ADMIN_KEY); otherwise read the log of billing.",
        )
