"""Asks a provider's own API what an account has used, by day and model: the pages that `provider_export`
reads.

It needs an admin key of the account there; nothing of it is shown or kept.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from billing.wire.engine_kinds import KINDS, UsageExport, key_headers
from deploy.cli.provider_export import ExportError

_TIMEOUT_S: Final = 60.0
_PAGES_MAX: Final = 1_000
# As many days as a page can have.
_DAYS_A_PAGE: Final = 31
_URLS: Final = {"openai": "https://api.openai.com", "anthropic": "https://api.anthropic.com"}
# By the form of what it tells.
_PATHS: Final = {
    "openai": ("/v1/organization/usage/completions", "/v1/organization/usage/embeddings"),
    "anthropic": ("/v1/organizations/usage_report/messages",),
}


def ask_provider(provider: str, key: str, span: tuple[str, str | None], url: str | None = None) -> str:
    """The pages of [from, until), both RFC 3339, as a JSON list. Whole days: from the beginning of the first
    one; without an end those that are over. Raises ExportError, ClickException.
    """
    import httpx

    from billing.wire.certificates import checked_by

    form = KINDS[provider].usage_export
    assert form is not None, f"{provider} does not tell what was used"
    base = (url or _URLS[provider]).rstrip("/").removesuffix("/v1")
    begins, ends = _midnight(span[0]), _midnight(span[1] or datetime.now(UTC).isoformat())
    if span[1] is not None and datetime.fromisoformat(span[1]) > ends:
        ends += timedelta(days=1)
    if begins >= ends:
        raise ExportError("no day is over in this time")
    pages: list[Any] = []
    try:
        with httpx.Client(timeout=_TIMEOUT_S, trust_env=False, verify=checked_by(base)) as client:
            for path in _PATHS[form]:
                asked = _query(form, begins, ends)
                while True:
                    answer = client.get(base + path, params=asked, headers=key_headers(provider, key))
                    page = _page(answer.status_code, answer.content, base + path)
                    pages.append(page)
                    if not page.get("has_more"):
                        break
                    if len(pages) >= _PAGES_MAX or not isinstance(page.get("next_page"), str):
                        raise ExportError(f"{base}{path} does not come to an end")
                    asked["page"] = page["next_page"]
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise click.ClickException(f"{base}: {exc or type(exc).__name__}") from exc
    return json.dumps([page | {"has_more": False} for page in pages])


def _query(form: UsageExport, begins: datetime, ends: datetime) -> dict[str, str | int]:
    match form:
        case "openai":
            return {
                "start_time": int(begins.timestamp()), "end_time": int(ends.timestamp()),
                "bucket_width": "1d", "group_by": "model", "limit": _DAYS_A_PAGE,
            }  # fmt: skip
        case "anthropic":
            return {
                "starting_at": f"{begins:%Y-%m-%dT%H:%M:%SZ}", "ending_at": f"{ends:%Y-%m-%dT%H:%M:%SZ}",
                "bucket_width": "1d", "group_by[]": "model", "limit": _DAYS_A_PAGE,
            }  # fmt: skip


def _page(status: int, content: bytes, where: str) -> dict[str, Any]:
    """Raises ExportError. The provider's own words may hold a part of the key, and are not shown."""
    if status in {401, 403}:
        raise ExportError(f"{where} answers HTTP {status}: it needs an admin key of the account")
    if status != 200:
        raise ExportError(f"{where} answers HTTP {status}")
    try:
        page = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise ExportError(f"{where} answers no JSON") from exc
    if not isinstance(page, dict):
        raise ExportError(f"{where} answers no page")
    return page


def _midnight(moment: str) -> datetime:
    """At which the day of this moment began, in UTC."""
    return datetime.fromisoformat(moment).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
