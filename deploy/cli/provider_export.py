"""What a provider exports of an account's usage, by day and model. Pure: it reads no file.

| provider | JSON | CSV of its console |
| --- | --- | --- |
| openai | pages of `/v1/organization/usage/completions` (or `embeddings`), grouped by model | `start_time`, `model`, `input_tokens`, `input_cached_tokens`, `output_tokens` |
| anthropic | pages of `/v1/organizations/usage_report/messages`, grouped by model | `usage_date_utc`, `model_version`, `usage_input_tokens_…`, `usage_output_tokens` |

OpenAI's input tokens have those of its cache in them, Anthropic's have not. Here they have, for both.
"""  # noqa: E501

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final

from billing.wire.engine_kinds import KINDS, without_snapshot

_COUNT_MAX: Final = 10**15


class ExportError(ValueError):
    """Not an export that can be read; the message says what is wrong with it, and where."""


@dataclass(slots=True, kw_only=True)
class Counted:
    """Tokens. `cached` and `written` are parts of `prompt`; `written` None: it is not told."""

    prompt: int = 0
    cached: int = 0
    output: int = 0
    written: int | None = None

    def add(self, other: "Counted") -> None:
        """Add what is told."""
        for each in fields(self):
            more = getattr(other, each.name)
            if more is not None:
                setattr(self, each.name, (getattr(self, each.name) or 0) + more)


@dataclass(slots=True)
class Export:
    """By day (`2026-01-31`, UTC) and model, without the name of a snapshot. `days`: those that it covers."""

    counted: dict[tuple[str, str], Counted]
    days: set[str]


def read_export(text: str, provider: str, key_id: str | None = None) -> Export:
    """`key_id`: only what this API key used, by its id (in Anthropic's CSV: its name). Raises ExportError."""
    begins = text.lstrip("\ufeff \t\r\n")
    form = _FORMS[KINDS[provider].usage_export]
    rows = (_of_json if begins[:1] in ("{", "[") else _of_csv)(begins, form)
    export = Export({}, set())
    for place, day, row in rows:
        export.days.add(day)
        if row is None or (key_id is not None and key_id not in (row.get("api_key_id"), row.get("api_key"))):
            continue
        name = row.get("model") or row.get("model_version")
        if not isinstance(name, str) or not name:
            raise ExportError(f"{place} names no model: export the usage grouped by model")
        export.counted.setdefault((day, without_snapshot(name)), Counted()).add(form.read(place, row))
    if not export.days:
        raise ExportError("it covers no day")
    return export


Rows = Iterable[tuple[str, str, Mapping[str, Any] | None]]


def _of_json(text: str, form: "_Form") -> Rows:
    """Each result with its place and day; None for a time in which nothing was used."""
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ExportError(f"it is no JSON: {str(exc)[:100]}") from exc
    pages = decoded if isinstance(decoded, list) else [decoded]
    if any(page.get("has_more") for page in pages[-1:] if isinstance(page, dict)):
        raise ExportError("it has only some pages (`has_more`): put all of them into one list")
    for number, page in enumerate(pages):
        buckets = page.get("data") if isinstance(page, dict) else None
        if not isinstance(buckets, list):
            raise ExportError(f"page {number} has no list `data`")
        for index, bucket in enumerate(buckets):
            yield from _of_bucket(f"page {number}, data[{index}]", bucket, form)


def _of_bucket(place: str, bucket: Any, form: "_Form") -> Iterator[tuple[str, str, Mapping[str, Any] | None]]:
    if not isinstance(bucket, dict) or not isinstance(bucket.get("results"), list):
        raise ExportError(f"{place} has no list `results`")
    day = _day(place, bucket.get(form.time))
    yield place, day, None
    for index, row in enumerate(bucket["results"]):
        if not isinstance(row, dict):
            raise ExportError(f"{place}.results[{index}] is no object")
        if "amount" in row:
            raise ExportError(f"{place} is a report of costs: export the usage, in tokens")
        yield f"{place}.results[{index}]", day, row


def _of_csv(text: str, form: "_Form") -> Rows:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        names = set(reader.fieldnames or ())
        if missing := {form.csv_time, form.csv_output} - names:
            raise ExportError(f"its first line lacks {', '.join(sorted(missing))}, which {form.name}'s has")
        for row in reader:
            yield f"line {reader.line_num}", _day(f"line {reader.line_num}", row[form.csv_time]), row
    except csv.Error as exc:
        raise ExportError(f"it is no CSV: {exc}") from exc


def _day(place: str, moment: Any) -> str:
    """Of seconds since 1970, or of a date or moment of RFC 3339, in UTC."""
    try:
        if isinstance(moment, int) or (isinstance(moment, str) and moment.replace(".", "", 1).isdecimal()):
            return datetime.fromtimestamp(float(moment), UTC).date().isoformat()
        at = datetime.fromisoformat(moment)
        return (at if at.tzinfo is None else at.astimezone(UTC)).date().isoformat()
    except (TypeError, ValueError, OverflowError, OSError) as exc:
        raise ExportError(f"{place} has no time that can be read: {str(moment)[:40]!r}") from exc


def _openai(place: str, row: Mapping[str, Any]) -> Counted:
    written = row.get("input_cache_write_tokens")
    return Counted(
        prompt=_count(place, row, "input_tokens"),
        cached=_count(place, row, "input_cached_tokens"),
        output=_count(place, row, "output_tokens"),
        written=None if written in (None, "") else _count(place, row, "input_cache_write_tokens"),
    )


def _anthropic(place: str, row: Mapping[str, Any]) -> Counted:
    if "usage_output_tokens" in row:
        head, uncached, read = "usage_input_tokens_", "no_cache", "cache_read"
        written = sum(_count(place, row, f"{head}cache_write_{age}") for age in ("5m", "1h"))
        cached, output = _count(place, row, head + read), _count(place, row, "usage_output_tokens")
        rest = _count(place, row, head + uncached)
    else:
        created = row.get("cache_creation") or {}
        ages = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
        written = sum(_count(place, created, age) for age in ages)
        cached, output = _count(place, row, "cache_read_input_tokens"), _count(place, row, "output_tokens")
        rest = _count(place, row, "uncached_input_tokens")
    return Counted(prompt=rest + cached + written, cached=cached, output=output, written=written)


def _count(place: str, row: Any, name: str) -> int:
    """A count of tokens; 0 if it is missing. OpenAI's CSV writes some as `3.0`."""
    value = row.get(name) if isinstance(row, Mapping) else None
    if value in (None, ""):
        return 0
    text = str(value)
    whole = text.removesuffix(".0")
    if isinstance(value, bool) or not (whole.isascii() and whole.isdecimal()) or int(whole) > _COUNT_MAX:
        raise ExportError(f"{place} has no count of tokens in {name}: {text[:40]!r}")
    return int(whole)


@dataclass(frozen=True, slots=True)
class _Form:
    """Where its JSON, and the CSV of its console, have the time; a column that only its CSV has; its reader
    of a row.
    """

    name: str
    time: str
    csv_time: str
    csv_output: str
    read: Callable[[str, Mapping[str, Any]], Counted]


_FORMS: Final[Mapping[str | None, _Form]] = {
    "openai": _Form("openai", "start_time", "start_time", "output_tokens", _openai),
    "anthropic": _Form("anthropic", "starting_at", "usage_date_utc", "usage_output_tokens", _anthropic),
}
