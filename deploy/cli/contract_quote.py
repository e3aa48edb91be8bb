"""`taas contract quote`: what could be signed, and how many units a load takes."""

from collections.abc import Mapping
from typing import Any, Final

import click

from deploy.cli.connection import call, given
from deploy.cli.contract_terms import PART, UNITS, WHOLE_PART, burst_option, times
from deploy.cli.output import Columns, at, json_option, minute, number, print_json, print_table, rounded

# Of what is missing so many times are named, as a refusal does.
_SHORT_MAX: Final = 5
_FREE: Columns = {"FROM (UTC)": at("from"), "UNTIL (UTC)": at("until"), "FREE UNITS/S": number("units")}
_UNIT: Final = (
    "a unit is the work of one uncached input token; cached input takes less of it, output more,"
    " by the model's weights"
)


@click.command()
@click.option("--pool", required=True, help="The pool.")
@click.option(
    "--units",
    type=UNITS,
    metavar="N",
    help="Whether this many units per second fit, from when on and until when.",
)
@click.option(
    "--requests-per-minute",
    type=click.IntRange(min=1),
    metavar="N",
    help="Instead of --units: this many requests …",
)
@click.option(
    "--input",
    "input_tokens",
    type=click.IntRange(min=0),
    metavar="TOKENS",
    help="… with this many input tokens each, …",
)
@click.option(
    "--cached",
    type=WHOLE_PART,
    metavar="PART",
    help="… of which this part comes from the prefix cache, such as 50%, …",
)
@click.option(
    "--output",
    "output_tokens",
    type=click.IntRange(min=0),
    metavar="TOKENS",
    help="… and this many output tokens.",
)
@click.option("--model", help="The model whose weights count, if the pool has several.")
@click.option("--from", "since", metavar="WHEN", help="A date, `now`, or a span from now. Default: now.")
@click.option("--until", metavar="WHEN", help="A date, or a span from --from. Default: for good.")
@burst_option
@click.option(
    "--headroom", type=PART, metavar="PART", help="The headroom that the contract would need, such as 10%."
)
@json_option
def quote(as_json: bool, **said: Any) -> None:
    """What could be signed in a pool: how much over a time, from when on, until when. It holds nothing.

    \b
    taas contract quote --pool llama-70b --until 3y
    taas contract quote --pool llama-70b --units 500 --burst 10s --from 2027-01-01 --until 1y
    taas contract quote --pool llama-70b --requests-per-minute 60 --input 2000 --cached 50% --output 300
    """
    term = times(said["since"], said["until"])
    body = given(
        pool=said["pool"], units=said["units"], load=_load(said), model=said["model"], until=term.until,
        headroom=said["headroom"], burst_seconds=said["burst"], **{"from": term.starts},
    )  # fmt: skip
    answer = call("POST", "contracts", "quote", body=body)
    if as_json:
        print_json(answer)
        return
    if "load" in body:
        click.echo(f"that takes {rounded(answer['units'])} units per second; {_UNIT}")
    if answer.get("fits", False) is None:
        click.echo(
            f"pool {answer['pool']} has not been measured: how many fit is not known. `taas calibrate "
            f"{answer['pool']}`"
        )
        return
    click.echo(
        f"at most {rounded(answer['at_most'])} units per second fit "
        f"{_period(answer['from'], answer['until'])}"
    )
    if "units" in answer:
        for line in fit(answer):
            click.echo(line)
    click.echo(
        f"burst: {rounded(answer['burst_units'])} units at once ({answer['burst_seconds']} s of the rate)"
    )
    print_table(_FREE, answer["free"])


def _load(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """Raises UsageError for half a load, or one beside --units."""
    if said["requests_per_minute"] is None:
        if any(said[name] is not None for name in ("input_tokens", "cached", "output_tokens")):
            raise click.UsageError("give --requests-per-minute.")
        return None
    if said["units"] is not None:
        raise click.UsageError("give --units, or --requests-per-minute with --input and --output.")
    if said["input_tokens"] is None or said["output_tokens"] is None:
        raise click.UsageError("give --input and --output, in tokens per request.")
    return given(
        requests_per_minute=said["requests_per_minute"], input=said["input_tokens"], cached=said["cached"],
        output=said["output_tokens"]
    )  # fmt: skip


def fit(answer: Mapping[str, Any]) -> list[str]:
    """Whether what was asked about fits, and if not, when and by how much it does not."""
    units = rounded(answer["units"])
    if answer["fits"]:
        return [f"{units} fit{_beyond(answer['until'], answer['fits_until'])}"]
    lines = [f"{units} do not fit over all of that"]
    for span in answer["short"][:_SHORT_MAX]:
        lines.append(
            f"{rounded(span['units'])} units per second more than is free, "
            f"{_period(span['from'], span['until'])}"
        )
    if len(answer["short"]) > _SHORT_MAX:
        lines.append(f"and {len(answer['short']) - _SHORT_MAX} times more")
    if answer["fits_until"] != answer["from"]:
        lines.append(f"they fit until {minute(answer['fits_until'])}")
    later = answer["fits_from"]
    lines.append("no later start fits" if later is None else f"they fit for as long from {minute(later)} on")
    return lines


def _beyond(asked: str | None, fits: str | None) -> str:
    """Over what was asked about, and how much longer."""
    if asked is None:
        return ", for good"
    if fits is None:
        return " over all of that; a longer term fits, too, even one without an end"
    if fits == asked:
        return " over all of that, and no longer"
    return f" over all of that; a longer term fits until {minute(fits)}"


def _period(since: str, until: str | None) -> str:
    return (
        f"from {minute(since)} on, for good"
        if until is None
        else f"from {minute(since)} until {minute(until)}"
    )
