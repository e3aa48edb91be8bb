"""Routes of economics: what machines earn and cost."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from billing.api.control import Control
from billing.api.economics_answers import EconomicsAnswer
from billing.api.fields import Moment, Name
from billing.api.query import KNOWN_QUERY
from billing.catalogue import pools
from billing.contracts.store import now_ms
from billing.economics.periods import whole_hour
from billing.economics.report import By, Economics, parse_by, report
from billing.economics.shown import ROUNDING, shown
from billing.moments import DAY_MS, utc
from billing.reclaims.outlook import quarter_starts
from billing.refusals import Invalid

router = APIRouter(prefix="/admin/v1/economics", tags=["economics"], dependencies=[KNOWN_QUERY])

_PERIOD_MS_MAX: Final = 20 * 366 * DAY_MS


@router.get("", response_model=EconomicsAnswer, response_model_exclude_unset=True)
def show(
    control: Control,
    by: Annotated[str, Query(max_length=200, description="Such as `quarter,use`.")] = "quarter,use",
    since: Annotated[
        Moment | None, Query(alias="from", description="To the hour. Default: the start of the quarter.")
    ] = None,
    until: Annotated[
        Moment | None, Query(description="To the hour, or now, which is the default and the most.")
    ] = None,
    pool: Annotated[Name | None, Query(description="Of this pool only.")] = None,
) -> dict[str, Any]:
    """What was earned by requests that ended in [from, until), what machines cost meanwhile, and how much of
    what they could do was sold, used, lent and idle.
    """
    try:
        words = parse_by(by)
    except ValueError as exc:
        raise Invalid(
            f"Economics are grouped by some of {', '.join(By)}, each once, with commas between.", param="by"
        ) from exc
    with control.reading() as connection:
        pools.require_named(connection, pool)
        at_ms = now_ms(connection)
        until_ms = at_ms if until is None or until >= at_ms else whole_hour(until)
        from_ms = quarter_starts(until_ms, 1)[0] if since is None else whole_hour(since)
        if from_ms > until_ms:
            raise Invalid("The period begins after it ends.", param="from")
        if until_ms - from_ms > _PERIOD_MS_MAX:
            raise Invalid("At most 20 years at once.", param="from")
        found = report(connection, words, from_ms, until_ms, pool)
    return _shown(found)


def _shown(found: Economics) -> dict[str, Any]:
    return {
        "from": utc(found.from_ms),
        "until": utc(found.until_ms),
        "by": list(found.by),
        "currency": "USD",
        "rounding": ROUNDING,
        "lines": [
            {by.value: name or None for by, name in zip(found.by, line.names, strict=True)}
            | shown(line.figures)
            for line in found.lines
        ],
        "total": shown(found.total),
    }
