"""`taas calibrate POOL`: load one idle instance of a pool, see what it can do, and have the admin API
store that.
"""

import asyncio
import math
import signal
import threading
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

import click

from billing.wire.engine_kinds import PROVIDERS
from billing.wire.routes import generates
from deploy.cli.confirmation import confirm, require_answerable, yes_option
from deploy.cli.connection import AdminApiError, call, call_list
from deploy.cli.engine_access import find_hardware, find_key
from deploy.cli.output import Columns, json_option, print_fields, print_json, print_table, show

if TYPE_CHECKING:
    from serving.calibration.load import Step
    from serving.calibration.measure import MeasuredCapacity, MeasurementPlan, Outcome

_HISTORY: Final[Columns] = {
    "CALIBRATION": "calibration", "POOL": "pool", "MODEL": "model", "UNITS/S": "capacity_units_per_second",
    "SEQUENCES": "sequences", "WEIGHTS (IN/CACHED/OUT)": lambda row: _weights_word(row["weights"]),
    "ERROR": lambda row: _percent(row["error"]), "HARDWARE": "hardware", "ENGINE": "engine_version",
    "CREATED (UTC)": "created",
}  # fmt: skip
# What an instance says of its load is a second old: one that has just become idle is waited for.
_IDLE_WAIT_S: Final = 5.0
_IDLE_POLL_S: Final = 0.2


@click.command()
@click.argument("pool", required=False)
@click.option(
    "--instance", "instance_id", metavar="ID", help="The instance to measure. Default: the first idle one."
)
@click.option(
    "--tpot-ms",
    type=click.IntRange(1, 3_600_000),
    default=100,
    show_default=True,
    help="The longest time between two tokens (ITL) to allow.",
)
@click.option(
    "--ttft-ms",
    type=click.IntRange(1, 3_600_000),
    default=2000,
    show_default=True,
    help="The longest time to first token (TTFT) to allow.",
)
@click.option(
    "--seconds-per-step",
    type=click.FloatRange(0.2, 600),
    default=3.0,
    show_default=True,
    help="How long each step is measured.",
)
@click.option(
    "--engine-key",
    help="The engine's API key; better in TAAS_ENGINE_KEY. Default: as registered.",
)
@click.option(
    "--hardware", metavar="TEXT", help="The engine's hardware. Default: this machine, if the engine is on it."
)
@click.option(
    "--reweigh",
    is_flag=True,
    help="Accept that units of signed contracts buy over 10% more or less than now.",
)
@click.option("--history", is_flag=True, help="Measure nothing; list past calibrations, of POOL or of all.")
@yes_option
@json_option
def calibrate(pool: str | None, history: bool, yes: bool, as_json: bool, **options: Any) -> None:
    """Measure what an instance of POOL can do, in work units per second. Capacity is sold by that.

    It loads one idle instance for a minute or two. It finds how many sequences meet the latency targets,
    runs mixes of prompts that are long, cached, or short with long answers, fits the cost of each kind of
    token, and predicts a mix that the fit has not seen, and prompts of up to half the context. The weights
    become a new version of the model's. If contracts are signed, weights that differ by more than 10% are
    refused without --reweigh, because the same units would buy something else.

    \b
    taas calibrate llama-70b
    taas calibrate llama-70b --tpot-ms 50 --ttft-ms 1000 --hardware '8 x H100 80GB' --yes
    taas calibrate --history
    """  # fmt: skip
    if history:
        show(
            call_list("calibrations", query={"pool": pool}),
            as_json,
            _HISTORY,
            empty="nothing was measured yet",
        )
        return
    if pool is None:
        raise click.UsageError("name a pool; `taas pool list` shows them.")
    require_answerable(yes=yes, as_json=as_json)
    instance = _choose(pool, options["instance_id"])
    hardware = find_hardware(instance["url"], options["hardware"])
    question = (
        f"This loads {instance['instance']} at {instance['url']} for a minute or two; what tenants send "
        "there meanwhile is slow, and spoils it. Go on?"
    )
    confirm(question, yes=yes)
    plan = _plan(instance, options)
    outcome = _measure(plan, instance)
    if outcome.calibration is None:
        raise click.ClickException(f"nothing was stored: {outcome.failure}")
    body = _body(pool, instance, hardware, plan, outcome.calibration)
    try:
        stored = call("POST", "calibrations", body=body | ({"reweigh": True} if options["reweigh"] else {}))
    except AdminApiError as exc:
        raise AdminApiError(f"nothing was stored: {exc.message}", exc.code) from exc
    if as_json:
        print_json(stored)
    else:
        _print(stored)


def _choose(pool: str, instance_id: str | None) -> dict[str, Any]:
    """An instance of the pool that works and has nothing to do, waiting a little for one. Raises
    ClickException.
    """
    ends_at = time.monotonic() + _IDLE_WAIT_S
    while True:
        members = _members(pool, instance_id)
        up = [row for row in members if row["status"] in {"ready", "draining"}]
        idle = [row for row in up if row["load"]["running"] == row["load"]["waiting"] == 0]
        if idle:
            chosen: dict[str, Any] = idle[0]
            return chosen
        if not up or time.monotonic() > ends_at:
            why = ", ".join(f"{row['instance']} {_business(row)}" for row in members)
            raise click.ClickException(f"no instance is idle ({why}): drain one, or try again later.")
        time.sleep(_IDLE_POLL_S)


def _members(pool: str, instance_id: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = call_list("instances", query={"pool": pool})["data"]
    members = [row for row in found if row["engine"] not in PROVIDERS]  # what a provider can do is not ours
    if instance_id is not None:
        members = [row for row in members if row["instance"] == instance_id]
    if not members:
        what = f"no instance {instance_id} in pool {pool}" if instance_id else f"no instance in pool {pool}"
        raise click.ClickException(f"there is {what}; `taas instance list` shows those that are.")
    return members


def _business(row: dict[str, Any]) -> str:
    load = row["load"]
    busy = load["running"] or load["waiting"]
    return f"runs {load['running']}, {load['waiting']} wait" if busy else f"is {row['status']}"


def _plan(instance: dict[str, Any], options: dict[str, Any]) -> "MeasurementPlan":
    from serving.calibration.load import Targets
    from serving.calibration.measure import MeasurementPlan
    from serving.calibration.probe import EngineAddress

    model = call("GET", "models", instance["model"])
    if not generates(model["routes"]):
        raise click.ClickException(f"{model['name']} generates no text, so it cannot be calibrated.")
    key = find_key(instance["instance"], options["engine_key"])
    address = EngineAddress(instance["url"], key, model["engine_model"], instance["abort"])
    targets = Targets(options["tpot_ms"], options["ttft_ms"])
    return MeasurementPlan(address, model["context_tokens"], targets, options["seconds_per_step"])


def _measure(plan: "MeasurementPlan", instance: dict[str, Any]) -> "Outcome":
    """Run it and have what it cost accounted for, whatever came of it. Raises ClickException."""
    from serving.calibration.measure import CannotMeasure, calibrate
    from serving.calibration.probe import ProbeFailed

    began = time.monotonic()
    started_ms = int(time.time() * 1000)

    def note(line: str) -> None:
        click.echo(f"{time.monotonic() - began:5.0f} s  {line}", err=True)

    click.echo(f"measuring {instance['instance']} at {instance['url']}", err=True)
    try:
        outcome = asyncio.run(_until_stopped(calibrate(plan, note)))
    except asyncio.CancelledError as exc:
        raise click.Abort from exc
    except (CannotMeasure, ProbeFailed) as exc:
        raise click.ClickException(str(exc)) from exc
    spent = outcome.spent
    body = {
        "run": outcome.run, "model": instance["model"], "instance": instance["instance"],
        "epoch": instance["epoch"], "prompt": spent.prompt, "cached": spent.cached, "output": spent.output,
        "started_ms": started_ms,
    }  # fmt: skip
    call("POST", "calibrations", "absorbed", body=body)
    note(
        f"{spent.prompt:,} prompt and {spent.output:,} output tokens were produced for this, absorbed, "
        "billed to nobody"
    )
    if outcome.interrupted:
        raise click.Abort
    return outcome


async def _until_stopped(measuring: Coroutine[Any, Any, "Outcome"]) -> "Outcome":
    """Told to stop or left by its terminal it ends as it does on Ctrl-C: what it has cost is counted.
    Once; a second time changes nothing.
    """
    task = asyncio.ensure_future(measuring)
    told: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if not told:
            told.append(number)
            task.cancel()

    # Only there can a program hear of signals.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # As under nohup.
                asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return await task


def _body(
    pool: str, instance: dict[str, Any], hardware: str, plan: "MeasurementPlan", found: "MeasuredCapacity"
) -> dict[str, Any]:  # fmt: skip
    fit = found.fit
    return {
        "pool": pool,
        "model": instance["model"],
        "weights": {"w_in_mu": fit.w_in_mu, "w_cached_mu": fit.w_cached_mu, "w_out_mu": fit.w_out_mu},
        "capacity_units_per_second": f"{fit.capacity_mu_s // 1000}.{fit.capacity_mu_s % 1000:03d}",
        "sequences": found.sequences,
        "tpot_target_ms": plan.targets.tpot_ms,
        "ttft_target_ms": plan.targets.ttft_ms,
        "hardware": hardware,
        "engine_version": found.engine_version,
        # Rounded up: it is said how wrong the fit is at most.
        "error": f"{math.ceil(abs(found.error) * 1000) / 1000:.3f}",
        "instance": instance["instance"],
        "steps": [
            *(_step(each, fit.error_of(each.done), held_back=False) for each in found.steps),
            _step(found.held_back, found.error, held_back=True),
            *(
                _step(each, fit.error_of(each.done), held_back=True)
                for each in (found.long,)
                if each is not None
            ),
        ],
        "remarks": list(found.remarks),
    }


def _step(step: "Step", error: float, *, held_back: bool) -> dict[str, Any]:
    done = step.done
    return {
        "mix": done.mix, "held_back": held_back, "sequences": step.sequences, "seconds": round(done.seconds,
        3), "uncached": done.uncached,
        "cached": done.cached, "output": done.output, "tpot_ms": _rounded(step.tpot_ms),
        "ttft_ms": _rounded(step.ttft_ms), "error": round(error, 4),
    }  # fmt: skip


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 1)


def _print(stored: dict[str, Any]) -> None:
    mixes: Columns = {
        "MIX": lambda row: f"{row['mix']} (not "
                           "fitted)" if row["held_back"] and row["mix"] != "held back" else row["mix"],
        "UNCACHED/S": lambda row: round(row["uncached"] / row["seconds"]),
        "CACHED/S": lambda row: round(row["cached"] / row["seconds"]),
        "OUTPUT/S": lambda row: round(row["output"] / row["seconds"]),
        "MS A TOKEN": lambda row: _whole(row["tpot_ms"]), "MS TO FIRST": lambda row: _whole(row["ttft_ms"]),
        "FIT IS OFF BY": lambda row: f"{100 * row['error']:+.1f} %",
    }  # fmt: skip
    print_table(mixes, stored["steps"])
    others = [step for step in stored["steps"] if step["held_back"] and step["mix"] != "held back"]
    further = [f"; {_percent(str(abs(step['error'])))} on {step['mix']} tokens" for step in others]
    weights, capacity, error = stored["weights"], stored["capacity_units_per_second"], stored["error"]
    print_fields({
        "pool": stored["pool"], "model": stored["model"], "instance": stored["instance"],
        "hardware": stored["hardware"], "engine": stored["engine_version"],
        "weights (in/cached/"
        "out)": f"{_weights_word(weights)}: a token written is the work of "
                f"{weights['w_out_mu'] / weights['w_in_mu']:.1f} read, "
        f"a cached one of {weights['w_cached_mu'] / weights['w_in_mu']:.2f}",
        "capacity": f"{float(capacity):,.0f} units per second and instance (1 unit = 1 uncached input token)",
        "sequences": f"{stored['sequences']} at once keep {stored['tpot_target_ms']} ms a token and "
                     f"{stored['ttft_target_ms']} ms to the first (typical mix)",
        "error": f"{_percent(error)} on the mix held back, which was not fitted{''.join(further)}",
    })  # fmt: skip
    for remark in stored["remarks"]:
        click.echo(f"note: {remark}", err=True)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _percent(part: str) -> str:
    return f"{100 * float(part):.1f} %"


def _weights_word(weights: dict[str, int]) -> str:
    return f"{weights['w_in_mu']}/{weights['w_cached_mu']}/{weights['w_out_mu']} v{weights['version']}"
