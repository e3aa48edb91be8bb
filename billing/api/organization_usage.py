"""Usage and costs in OpenAI's form, for the admin client of its SDK. Gateways pass these routes on.

A tenant's admin key sees that tenant, one of the platform all tenants or the one that it names. Tokens are
those billed. Buckets are whole minutes, hours and days of UTC.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from sqlalchemy import Connection

from billing.api.control import Control, ControlPlane
from billing.api.fields import TenantQuery
from billing.api.organization_answers import CostPage, PooledPage, UsagePage
from billing.api.plain_lists import PlainLists
from billing.api.query import KNOWN_QUERY
from billing.catalogue.money import Money
from billing.economics.owed import beside_tokens
from billing.ledger.usage_buckets import (
    CostGroup,
    UsageGroup,
    Wanted,
    read_costs,
    read_usage,
)
from billing.moments import DAY_MS, HOUR_MS, MINUTE_MS
from billing.refusals import Invalid

router = APIRouter(
    prefix="/v1/organization", tags=["organization"], dependencies=[KNOWN_QUERY], route_class=PlainLists
)

T = TypeVar("T", UsageGroup, CostGroup)
Width = Literal["1m", "1h", "1d"]
# Ms, and how many buckets a page has by default and at most.
_WIDTHS: Final[dict[str, tuple[int, int, int]]] = {
    "1m": (MINUTE_MS, 60, 1440), "1h": (HOUR_MS, 24, 168), "1d": (DAY_MS, 7, 31),
}  # fmt: skip
_COSTS_MAX: Final = 180
_PAGE: Final = "page_"
_SECONDS_MAX: Final = 253_402_300_799
_WORDS: Final = {
    "uncached_input": "input", "cached_input": "cached input", "cache_write": "cache write",
    "output": "output",
}  # fmt: skip

Seconds = Annotated[int, Field(ge=0, le=_SECONDS_MAX)]
_Id = Annotated[str, Field(max_length=256, pattern=r"^[^\x00]*$")]


Ids = Annotated[list[_Id] | None, Query(max_length=100)]
UsageBy = Literal["project_id", "api_key_id", "model", "service_tier", "batch"]
PooledBy = Literal["project_id", "api_key_id", "model"]
CostBy = Literal["project_id", "api_key_id", "line_item"]
Start = Annotated[Seconds, Query(description="Unix seconds, inclusive; its bucket is the first one.")]
End = Annotated[
    Seconds | None, Query(description="Unix seconds, exclusive; its bucket is the last one. Default: now.")
]
PageToken = Annotated[str | None, Query(max_length=32, description="`next_page` of the page before.")]


class _Span:
    """The buckets of one page."""

    def __init__(
        self,
        start_s: int,
        end_s: int | None,
        width: str,
        asked: tuple[int | None, str | None],
        *,
        most: int | None = None,
    ) -> None:
        """`asked`: how many buckets, and from which page on. Raises Invalid."""
        limit, page = asked
        self._width_ms, default, allowed = _WIDTHS[width]
        count = default if limit is None else limit
        if count > (most or allowed):
            raise Invalid(f"At most {most or allowed} buckets of {width} on a page.", param="limit")
        first = start_s * 1000 // self._width_ms
        # Redis's clock decides when a request has ended; a second more or less is in the last bucket.
        end_ms = int(time.time() * 1000) if end_s is None else end_s * 1000
        self._last = -(-end_ms // self._width_ms)
        if end_s is not None and end_s <= start_s:
            raise Invalid("The end is not after the start.", param="end_time")
        self._first = first if page is None else self._begins(page, first)
        self._until = min(self._last, self._first + count)

    def _begins(self, page: str, first: int) -> int:
        text = page.removeprefix(_PAGE)
        if text == page or not (text.isascii() and text.isdigit() and len(text) < 16):
            raise Invalid("`page` is not the `next_page` of a page.", param="page")
        begins, within = divmod(int(text) * 1000, self._width_ms)
        if within or not first <= begins <= self._last:
            raise Invalid("`page` is of another request.", param="page")
        return begins

    @property
    def wanted(self) -> Wanted:
        """Everything in them."""
        until = max(self._first, self._until)
        return Wanted(
            from_ms=self._first * self._width_ms, until_ms=until * self._width_ms, width_ms=self._width_ms
        )

    def paged(self, groups: Iterable[T], shown: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
        """The page with these groups."""
        results: dict[int, list[dict[str, Any]]] = {}
        for group in groups:
            results.setdefault(group.bucket_ms // self._width_ms, []).append(shown(group))
        more = self._until < self._last
        seconds = self._width_ms // 1000
        return {
            "object": "page",
            "data": [
                {
                    "object": "bucket",
                    "start_time": number * seconds,
                    "end_time": (number + 1) * seconds,
                    "results": results.get(number, []),
                }
                for number in range(self._first, self._until)
            ],
            "has_more": more,
            "next_page": f"{_PAGE}{self._until * seconds}" if more else None,
        }


def _usage_span(
    start_time: Start,
    end_time: End = None,
    bucket_width: Width = "1d",
    limit: Annotated[int | None, Query(ge=1, le=1440)] = None,
    page: PageToken = None,
) -> _Span:
    return _Span(start_time, end_time, bucket_width, (limit, page))


def _cost_span(
    start_time: Start,
    end_time: End = None,
    bucket_width: Literal["1d"] = "1d",
    limit: Annotated[int | None, Query(ge=1, le=_COSTS_MAX)] = None,
    page: PageToken = None,
) -> _Span:
    return _Span(start_time, end_time, bucket_width, (limit, page), most=_COSTS_MAX)


@dataclass(frozen=True, slots=True)
class _Among:
    """Whose usage is wanted."""

    tenant: TenantQuery = None
    project_ids: Ids = None
    api_key_ids: Ids = None


UsageSpan = Annotated[_Span, Depends(_usage_span)]
CostSpan = Annotated[_Span, Depends(_cost_span)]
Among = Annotated[_Among, Depends()]


@router.get("/usage/completions", response_model=UsagePage)
def completions(
    control: Control,
    span: UsageSpan,
    among: Among,
    group_by: Annotated[list[UsageBy] | None, Query()] = None,
    models: Ids = None,
    batch: bool | None = None,
) -> dict[str, Any]:
    """Usage of the requests that ended in these buckets, of models that generate. `service_tier`: priority
    (within a contract), default, flex; lines of batches are flex.
    """
    with control.reading() as connection:
        wanted = _wanted(connection, control, span, among, group_by)
        wanted = replace(wanted, models=models, pools=False, batch=batch)
        return span.paged(read_usage(connection, wanted), _usage_result)


@router.get("/usage/embeddings", response_model=PooledPage)
def embeddings(
    control: Control,
    span: UsageSpan,
    among: Among,
    group_by: Annotated[list[PooledBy] | None, Query()] = None,
    models: Ids = None,
) -> dict[str, Any]:
    """The same of what is made of prompts alone: embeddings, scores, documents by relevance."""
    with control.reading() as connection:
        wanted = replace(_wanted(connection, control, span, among, group_by), models=models, pools=True)
        return span.paged(read_usage(connection, wanted), _pooled_result)


@router.get("/costs", response_model=CostPage)
def costs(
    control: Control,
    span: CostSpan,
    among: Among,
    group_by: Annotated[list[CostBy] | None, Query()] = None,
) -> dict[str, Any]:
    """What is owed, by day: for tokens, for reserved capacity less what was short of it; where the period of
    an invoice begins, what that charges by its tenant's terms; and what credit notes of that day give back.
    Beside tokens nothing is of a project or a key. Prepaid credits, tax and rounding are on invoices only.
    """
    names = [name for name in group_by or () if name != "line_item"]
    by_item = "line_item" in (group_by or ())
    with control.reading() as connection:
        wanted = _wanted(connection, control, span, among, names)
        found = read_costs(connection, wanted, by_item=by_item)
        if among.project_ids is None and among.api_key_ids is None:
            found = _with_others(connection, found, wanted, by_item=by_item)
        return span.paged(found, _cost_result)


def _with_others(
    connection: Connection, found: list[CostGroup], wanted: Wanted, *, by_item: bool
) -> list[CostGroup]:
    """The same with what is owed beside tokens: a group of its own, or part of the day's only one."""
    edges = range(wanted.from_ms, wanted.until_ms + 1, wanted.width_ms)
    beside = beside_tokens(connection, edges, wanted.tenant_id) if len(edges) > 1 else []
    names = dict.fromkeys(wanted.by)
    others = [
        CostGroup(bucket_ms=edges[at], names=names, amount=Money(picousd), item=item if by_item else None)
        for at, item, picousd in beside
    ]
    if by_item:
        return [*found, *others]
    sums: dict[tuple[Any, ...], CostGroup] = {}
    for each in [*found, *others]:
        place = (each.bucket_ms, *each.names.values())
        before = sums.get(place)
        sums[place] = each if before is None else replace(each, amount=before.amount + each.amount)
    return list(sums.values())


def _wanted(
    connection: Connection, control: ControlPlane, span: _Span, among: _Among, by: Sequence[str] | None
) -> Wanted:
    return replace(
        span.wanted,
        by=tuple(dict.fromkeys(by or ())),
        tenant_id=control.tenant_asked(connection, among.tenant),
        project_ids=among.project_ids,
        key_ids=among.api_key_ids,
    )


def _usage_result(group: UsageGroup) -> dict[str, Any]:
    names = ("project_id", "user_id", "api_key_id", "model", "batch", "service_tier")
    return dict.fromkeys(names) | dict(group.names) | {
        "object": "organization.usage.completions.result",
        "input_tokens": group.prompt,
        "input_cached_tokens": group.cached,
        "input_cache_write_tokens": group.written,
        "input_uncached_tokens": group.prompt - group.cached - group.written,
        "output_tokens": group.output,
        "num_model_requests": group.requests,
    }  # fmt: skip


def _pooled_result(group: UsageGroup) -> dict[str, Any]:
    return dict.fromkeys(("project_id", "user_id", "api_key_id", "model")) | dict(group.names) | {
        "object": "organization.usage.embeddings.result",
        "input_tokens": group.prompt,
        "num_model_requests": group.requests,
    }  # fmt: skip


def _cost_result(group: CostGroup) -> dict[str, Any]:
    item = group.item if group.kind is None else f"{group.names['model']}, {_WORDS[group.kind]}"
    exact = str(group.amount)
    return {
        "object": "organization.costs.result",
        "amount": {"value": float(exact), "currency": "usd", "exact": exact},
        "line_item": item,
        "project_id": group.names.get("project_id"),
        "user_id": None,
        "api_key_id": group.names.get("api_key_id"),
        "quantity": group.tokens,
        "quantity_unit": None if group.tokens is None else "tokens",
    }
