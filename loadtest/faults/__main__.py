"""`python -m loadtest.faults --seeds 5 --kills 60 [--leak event --leak token --leak reservation]`: random
kills (-9) and pauses (SIGSTOP, up to 8 s) of gateways, billing, batch processes, Valkey, PostgreSQL, engines
and a provider under load. Then every request is held against the engines' own count, what was bought against
what the provider made, and every line of batches against their files. Exit status 1 with a discrepancy; with
`--leak`, 1 where the product's own audit does not name each leak, or names anything else. 2 when the
installation did not start.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import redis

from loadtest.children import DidNotStart, stop_children_on_sigterm
from loadtest.faults.batches import LINES, BatchCaller
from loadtest.faults.callers import Answers, Callers
from loadtest.faults.check import Checked, Discrepancy, check, of_audit, table
from loadtest.faults.leak import LEAKS, lose_reservation, spoil_event
from loadtest.faults.parts import Installation

_PAUSES_S: Final = (0.3, 1.0, 2.0, 4.0, 6.0, 8.0)
_REST_S: Final = 90.0
# A line that has failed waits for up to a minute.
_BATCHES_S: Final = 180.0
# Leases lapse, reapers are patient, counters are read and reconciled.
_RECONCILED_S: Final = 60.0
# Within this Redis has carried out what a gateway had sent when it was stopped.
_IN_FLIGHT_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One seed. `lines`: of the batches that were created."""

    seed: int
    faults: Counter[str]
    answers: Answers
    checked: Checked
    lines: int
    leaked: list[str]


def run(seed: int, kills: int, callers: int, leaks: Sequence[str]) -> Outcome:
    """One installation, from its start to what was found. Raises DidNotStart."""
    with tempfile.TemporaryDirectory(prefix="taas-faults-", ignore_cleanup_errors=True) as folder:
        installation = Installation(
            Path(folder), batches=2, batch_settings={"TAAS_BATCH_LEASE_S": "3"}, buys=True
        )
        answers = Answers()
        try:
            installation.start()
            keys = list(installation.keys.values())
            calling = Callers(installation.gateway_urls, keys, answers, seed, callers, buys=True)
            batches = BatchCaller(installation)
            batches.start()
            try:
                faults = disturb(installation, random.Random(seed), kills)
                batches.stop()
                _wait(lambda: batches.open() == 0, _BATCHES_S)
                leaked = [_leak(installation, each) for each in leaks]
            finally:
                batches.stop()
                calling.stop()
            come_to_rest(installation, leaked)
            checked = check(installation, answers)
            checked.found.extend(Discrepancy("line", line, why) for line, why in batches.wrong())
            lines = len(batches.made) * LINES
            return Outcome(
                seed=seed, faults=faults, answers=answers, checked=checked, lines=lines, leaked=leaked
            )
        finally:
            installation.stop()


def disturb(installation: Installation, dice: random.Random, kills: int) -> Counter[str]:
    """So many faults, one after the other; counted by part and kind."""
    faults: Counter[str] = Counter()
    for number in range(kills):
        part = dice.choice(installation.parts)
        kind = dice.choice(("kill", "pause"))
        faults[f"{kind} {part.name.partition('-')[0]}"] += 1
        if kind == "kill":
            part.kill()
            time.sleep(dice.uniform(0, 1))
            part.start()
        else:
            part.pause(dice.choice(_PAUSES_S))
        print(f"  {number + 1}/{kills} {kind} {part.name}", file=sys.stderr, flush=True)
        time.sleep(dice.uniform(0.2, 1.0))
    return faults


def come_to_rest(installation: Installation, leaked: Sequence[str] = ()) -> None:
    """Until nothing is open and the audit has nothing to say but what leaked, or the time for that is
    over: then the check says what is left.
    """
    _wait(lambda: installation.unfinished() == 0, _REST_S)
    _wait(lambda: not _wrong(of_audit(installation.audit()), leaked), _RECONCILED_S)


def _wrong(found: Sequence[Discrepancy], leaked: Sequence[str]) -> list[Discrepancy]:
    """What was found, or, where something leaked on purpose, what else was found and what the audit did
    not name.
    """
    if not leaked:
        return list(found)
    named = {each.request_id for each in found if each.what.startswith("audit_")}
    unnamed = [
        Discrepancy("leak_not_named", request_id, "") for request_id in leaked if request_id not in named
    ]
    return unnamed + [
        each for each in found if each.request_id not in leaked and each.what != "audit_residual"
    ]


def _wait(done: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if done():
                return
        except (httpx.HTTPError, redis.RedisError):
            pass
        time.sleep(0.5)


def _leak(installation: Installation, what: str) -> str:
    """Billing stands still, so that an event can be taken before it is read."""
    if what == "reservation":
        return _leak_reservation(installation)
    for part in installation.billings:
        part.kill()
    try:
        return spoil_event(installation.redis, what)
    finally:
        for part in installation.billings:
            part.start()


def _leak_reservation(installation: Installation) -> str:
    """The gateways stand still before and die after it: one that lived on would settle the request all the
    same.
    """
    deadline = time.monotonic() + _REST_S
    while time.monotonic() < deadline:
        with ExitStack() as still:
            for part in installation.gateways:
                still.enter_context(part.standing_still())
            time.sleep(_IN_FLIGHT_S)
            request_id = lose_reservation(installation.redis)
            if request_id:
                for part in installation.gateways:
                    part.kill()
        if request_id:
            for part in installation.gateways:
                part.start()
            return request_id
        time.sleep(_IN_FLIGHT_S)
    raise TimeoutError("no open request whose reservation could be lost")


def show(outcome: Outcome) -> list[Discrepancy]:
    """Print it; what counts as wrong."""
    checked = outcome.checked
    print(
        f"seed {outcome.seed}: {sum(outcome.faults.values())} faults, {outcome.answers.asked} calls, "
        f"{checked.requests} requests held one by one, {outcome.lines} lines of batches, {checked.events} "
        f"events, {checked.cut} cut by an engine's death, {len(checked.found)} discrepancies"
    )
    print("  " + ", ".join(f"{name} {count}" for name, count in sorted(outcome.faults.items())))
    print(f"  answers: {dict(Counter(outcome.answers.status.values()))}, whole {len(outcome.answers.whole)}")
    for line in table(checked.found):
        print(line)
    wrong = _wrong(checked.found, outcome.leaked)
    if outcome.leaked:
        print(f"  leaked on purpose: {', '.join(outcome.leaked)}; {len(wrong)} not named, or something else")
    return wrong


def main() -> int:
    """Run in this process; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many runs (default 5)")
    parser.add_argument("--first-seed", type=int, default=1, help="the first one's seed (default 1)")
    parser.add_argument("--kills", type=int, default=60, help="faults in each, kills and pauses (default 60)")
    parser.add_argument("--callers", type=int, default=12, help="callers at a time (default 12)")
    parser.add_argument(
        "--leak",
        choices=LEAKS,
        action="append",
        default=[],
        help="leak once on purpose at the end of each run; may be repeated",
    )
    words = parser.parse_args()
    stop_children_on_sigterm()
    wrong: list[Discrepancy] = []
    for seed in range(words.first_seed, words.first_seed + words.seeds):
        try:
            wrong += show(run(seed, words.kills, words.callers, words.leak))
        except DidNotStart as exc:
            print(exc, file=sys.stderr)
            return 2
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
