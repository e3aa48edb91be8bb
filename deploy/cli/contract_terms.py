"""The options that say what a contract is, and the body that they make. Sends nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import click

from deploy.cli.connection import given
from deploy.cli.moments import is_span, resolve, rfc3339

Command = Callable[..., None]
# More than any pool does, as the API has it.
_UNITS_MAX: Final = 10**12
_BURST_S_MAX: Final = 60


class _Part(click.ParamType[str]):
    """`10%` or `0.1`; less than all, or with `whole` up to all."""

    name = "part"

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            part = Decimal(text[:-1]) / 100 if text.endswith("%") else Decimal(text)
            # A comparison with what is no number is one more thing that raises.
            sensible = 0 <= part < 1 or (self._whole and part == 1)
        except ArithmeticError:
            raise click.BadParameter(f"{value!r} is not a part such as 10% or 0.1", ctx, param) from None
        if not sensible:
            raise click.BadParameter(f"{value!r} is not 0% or more and less than 100%", ctx, param)
        permille = int(part * 1000)
        if part != Decimal(permille) / 1000:
            raise click.BadParameter(f"{value!r} is finer than a tenth of a percent", ctx, param)
        return format(Decimal(permille) / 1000, "f")


class _Units(click.ParamType[str]):
    """A decimal above 0, as it was typed; `none` where that means something."""

    name = "units"

    def __init__(self, *, none: bool = False) -> None:
        self._none = none

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if self._none and text == "none":
            return text
        try:
            sensible = 0 < Decimal(text) <= _UNITS_MAX
        except ArithmeticError:
            sensible = False
        if not sensible:
            raise click.BadParameter(
                f"{value!r} is not a number of units above 0 and at most 10^12", ctx, param
            )
        return text


class _Burst(click.ParamType[str]):
    """Seconds: `10s`, `10`, `1min`."""

    name = "burst"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        number, scale = (
            (text.removesuffix("min"), 60) if text.endswith("min") else (text.removesuffix("s"), 1)
        )
        try:
            seconds = Decimal(number) * scale
        except ArithmeticError:
            seconds = Decimal(0)
        if not 1 <= seconds <= _BURST_S_MAX:
            raise click.BadParameter(f"{value!r} is not a burst of 1s to {_BURST_S_MAX}s", ctx, param)
        return format(seconds, "f")


class _RampStep(click.ParamType[tuple[str, str]]):
    """`WHEN:UNITS`; a moment may hold colons itself."""

    name = "when:units"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        when, colon, units = str(value).rpartition(":")
        if not colon or not when or not units:
            raise click.BadParameter(f"{value!r} is not WHEN:UNITS, such as 2027-01-01:200", ctx, param)
        return when, UNITS.convert(units, param, ctx)


PART = _Part()
WHOLE_PART = _Part(whole=True)
UNITS = _Units()
burst_option = click.option(
    "--burst", type=_Burst(), metavar="SECONDS",
    help="What may come at once: as much as the rate does in this time, such as 10s. Default: 1s. A longer "
         "one holds more of the pool: 10s ten "
    "times the rate.",
)  # fmt: skip
ramp_option = click.option(
    "--ramp", type=_RampStep(), multiple=True, metavar="WHEN:UNITS",
    help="From WHEN on this many units; repeat it for each step."
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Times:
    """What was said of a term. `starts` None: now, by the server; then spans, which count from the start, are
    left to the server as well: a year is a year, however long a request takes. Else all of it is resolved.
    """

    starts: str | None
    until: str | None
    minimum_until: str | None
    ramp: list[dict[str, str]]


def times(
    since: str | None, until: str | None, minimum: str | None = None, ramp: tuple[tuple[str, str], ...] = ()
) -> Times:
    """Raises BadParameter for a text that means no moment."""
    now = datetime.now(UTC)
    starts = resolve(since or "now", now=now, anchor=now, option="--from")

    from_now = since is None or since == "now"

    def said(text: str, option: str) -> str:
        moment = rfc3339(resolve(text, now=now, anchor=starts, option=option))
        return f"+{text.removeprefix('+')}" if from_now and is_span(text) else moment

    return Times(
        None if from_now else rfc3339(starts),
        None if until is None else said(until, "--until"),
        None if minimum is None else said(minimum, "--min-term"),
        [{"from": said(when, "--ramp"), "units": units} for when, units in ramp],
    )


def terms_options(command: Command) -> Command:
    """All that a contract says, for commands that make one; none is required here, as one that exists
    needs none.
    """
    options = [
        click.option("--tenant", help="Name or id of the tenant."),
        click.option("--pool", help="The pool of its capacity."),
        click.option("--units", type=UNITS, metavar="N",
        help="Work units per second, with at most three decimals."),
        click.option("--from", "since", metavar="WHEN",
        help="Start: a date, `now`, or a span from now. Default: now."),
        click.option("--until", metavar="WHEN", help="End: a date, or a span from the start, such as 3y."),
        ramp_option,
        click.option("--min-term", metavar="WHEN",
        help="Notice cannot end it before this: a span from the start, such as 12mo."),
        click.option("--notice-days", type=int, metavar="N", help="Notice of both sides, in days."),
        click.option("--tenant-notice-days", type=int, metavar="N", help="The tenant's, if it differs."),
        click.option("--operator-notice-days", type=int, metavar="N",
        help="The operator's, if it differs."),
        click.option(
            "--overflow", type=click.Choice(["reject", "spill", "queue"]),
            help="Requests beyond it are refused, served as on-demand, or queued. Default: "
                 "reject.",
        ),
        click.option("--spill-units", type=UNITS, metavar="N",
        help="At most this many units per second spill. Default: no cap."),
        burst_option,
        click.option("--headroom", type=PART, metavar="PART",
        help="Kept free beside it, such as 10%; at least the pool's headroom."),
        click.option("--price-reference", metavar="TEXT", help="Where its price is agreed."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def amendment_options(command: Command) -> Command:
    """What can be agreed anew."""
    options = [
        click.option("--units", type=UNITS, metavar="N", help="The new work units per second."),
        click.option("--from", "since", metavar="WHEN",
        help="From when on: a date, `now`, or a span from now. Default: now."),
        ramp_option,
        click.option("--until", metavar="WHEN",
        help="A later end: a date, or a span from --from, else from now."),
        burst_option,
        click.option("--overflow", type=click.Choice(["reject", "spill", "queue"]),
        help="What happens to requests beyond it from then on."),
        click.option("--spill-units", type=_Units(none=True), metavar="N|none",
        help="At most so many units per second spill; `none`: no cap."),
        click.option("--notice-days", type=int, metavar="N", help="Notice of both sides, in days."),
        click.option("--tenant-notice-days", type=int, metavar="N", help="The tenant's notice, in days."),
        click.option("--operator-notice-days", type=int, metavar="N", help="The operator's notice, in days."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def amendment_body(said: dict[str, Any]) -> dict[str, Any]:
    """The body of an amendment. Raises UsageError for one that changes nothing, or says when and not what."""
    plain = ("units", "overflow", "spill_units", "notice_days", "tenant_notice_days", "operator_notice_days")
    from_then = [name for name in plain if said[name] is not None]
    if not from_then and not said["ramp"] and said["until"] is None and said["burst"] is None:
        raise click.UsageError(
            "nothing to amend: give --units, --ramp, --until, --burst, --overflow, --spill-units or "
            "--notice-days."
        )
    if not from_then and said["since"] is not None:
        raise click.UsageError(
            "from then on what? Give --units, --overflow, --spill-units or --notice-days; a later end alone "
            "takes no --from."
        )
    term = times(said["since"], said["until"], None, said["ramp"])
    body = given(
        **{name: said[name] for name in from_then}, until=term.until, ramp=term.ramp, **{"from": term.starts}
    )
    if said["burst"] is not None:
        body["burst_seconds"] = said["burst"]
    if said["spill_units"] == "none":
        body["spill_units"] = None
    return body


def body_of(said: dict[str, Any], *, draft: bool) -> dict[str, Any]:
    """The body of a new contract. Raises UsageError for what no contract can do without."""
    if not said["units"] and not said["ramp"]:
        raise click.UsageError("give --units, in units per second.")
    for name, option in (("tenant", "--tenant"), ("pool", "--pool"), ("until", "--until")):
        if said[name] is None:
            raise click.UsageError(f"give {option}; `taas contract sign --help` shows a whole line.")
    both = said["tenant_notice_days"] is not None and said["operator_notice_days"] is not None
    if said["notice_days"] is None and not both:
        raise click.UsageError("give --notice-days: the notice of each side.")
    term = times(said["since"], said["until"], said["min_term"], said["ramp"])
    plain = (
        "tenant",
        "pool",
        "units",
        "notice_days",
        "tenant_notice_days",
        "operator_notice_days",
        "overflow",
    )
    rest = ("spill_units", "headroom", "price_reference")
    return given(
        **{name: said[name] for name in (*plain, *rest)},
        **{"from": term.starts},
        until=term.until,
        minimum_until=term.minimum_until,
        ramp=term.ramp,
        burst_seconds=said["burst"],
        draft=draft or None,
    )
