"""`python -m loadtest.batch_kills --lines 2000 --kills 10`: one batch on simulated engines, with kills (-9)
of gateways, billing, engines and batch processes spread over the run; then every line is held against the
output, the error file and the ledger. Exit status 1 where a line is missing, is there twice, or is billed
more or less than once, or where the audit's residual is not 0; 2 when the installation did not start.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from loadtest.children import DidNotStart, stop_children_on_sigterm
from loadtest.faults.parts import MODEL, Installation

_ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})
_LIMIT_S: Final = 480.0
_REST_S: Final = 90.0
# Lines share the beginnings of their prompts, as batches do.
_PREFIXES: Final = 20
_PREFIX_WORDS: Final = 60
_OUTPUT_TOKENS: Final = 30


@dataclass(slots=True)
class Held:
    """What was found. `wrong`: each line or figure that is not as it must be."""

    batch: dict[str, Any]
    seconds: float
    kills: Counter[str]
    figures: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class _Caller:
    """A tenant that asks the first gateway that answers."""

    def __init__(self, installation: Installation) -> None:
        self._urls = installation.gateway_urls
        self._headers = {"authorization": f"Bearer {installation.keys['refuses']}"}

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        deadline = time.monotonic() + _REST_S
        while True:
            for url in self._urls:
                try:
                    answer = httpx.request(
                        method, url + path, headers=self._headers, timeout=30, trust_env=False, **more
                    )
                except httpx.TransportError:
                    continue
                if answer.status_code < 500:
                    return answer.raise_for_status()
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody answered {method} {path}")
            time.sleep(0.2)


def run(lines: int, kills: int, seed: int) -> Held:
    """One batch, from its upload to what was found. Raises DidNotStart."""
    with tempfile.TemporaryDirectory(prefix="taas-batches-", ignore_cleanup_errors=True) as folder:
        installation = Installation(Path(folder), batches=2, batch_settings={"TAAS_BATCH_LEASE_S": "3"})
        try:
            installation.start()
            caller = _Caller(installation)
            content = "\n".join(json.dumps(line) for line in _lines(lines)).encode()
            upload = caller.ask(
                "POST", "/v1/files", files={"file": ("input.jsonl", content)}, data={"purpose": "batch"}
            )
            body = {
                "input_file_id": upload.json()["id"],
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            }
            began = time.monotonic()
            batch_id = caller.ask("POST", "/v1/batches", json=body).json()["id"]
            killed = _disturb(installation, batch_id, lines, kills, random.Random(seed))
            batch = _await_end(caller, batch_id)
            held = Held(batch, time.monotonic() - began, killed)
            _hold(installation, caller, held, lines)
            return held
        finally:
            installation.stop()


def _lines(count: int) -> Iterator[dict[str, Any]]:
    """Those that share a prefix are spread over the file."""
    for number in range(count):
        prefix = f"topic {number % _PREFIXES} " * _PREFIX_WORDS
        message = {"role": "user", "content": f"{prefix}question {number}"}
        body = {"model": MODEL, "messages": [message], "max_tokens": _OUTPUT_TOKENS}
        yield {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def _disturb(
    installation: Installation, batch_id: str, lines: int, kills: int, dice: random.Random
) -> Counter[str]:
    """A kill each time that a further part of the lines is answered: of each kind of part in turn."""
    killed: Counter[str] = Counter()
    kinds: list[list[Any]] = [
        [*installation.gateways],
        [*installation.billings],
        [*installation.engines],
        [*installation.batches],
    ]
    for number in range(kills):
        threshold = lines * (number + 1) // (kills + 1)
        _await(lambda: _answered(installation, batch_id) >= threshold, _LIMIT_S)  # noqa: B023 - at once
        part = dice.choice(kinds[number % len(kinds)])
        part.kill()
        killed[part.name.partition("-")[0]] += 1
        print(f"  {number + 1}/{kills} kill -9 {part.name} at {threshold} lines", file=sys.stderr, flush=True)
        time.sleep(dice.uniform(0, 1))
        part.start()
    return killed


def _answered(installation: Installation, batch_id: str) -> int:
    rows = installation.sql("select completed + failed from batch where batch_id = %s", batch_id)
    return int(rows[0][0])


def _await_end(caller: _Caller, batch_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def ended() -> bool:
        found.update(caller.ask("GET", f"/v1/batches/{batch_id}").json())
        return found["status"] in _ENDED

    _await(ended, _LIMIT_S)
    return found


def _hold(installation: Installation, caller: _Caller, held: Held, lines: int) -> None:
    """Every line against the output, the error file and the ledger."""
    found: Counter[str] = Counter()
    succeeded: set[str] = set()
    for name in ("output_file_id", "error_file_id"):
        if held.batch[name] is None:
            continue
        text = caller.ask("GET", f"/v1/files/{held.batch[name]}/content").text
        for line in map(json.loads, text.splitlines()):
            found[line["custom_id"]] += 1
            if name == "output_file_id":
                succeeded.add(line["custom_id"])
    for number in range(lines):
        custom_id = f"line-{number}"
        if found[custom_id] != 1:
            held.wrong.append(f"{custom_id} is in the files {found[custom_id]} times")
    _await(lambda: installation.unfinished() == 0, _REST_S)
    _await(lambda: int(installation.audit()["residual_tokens"]) == 0, _REST_S)
    billed = dict(
        installation.sql(
            "select line, count(*) from usage_event "
            "where line is not null and billed_output > 0 group by line"
        )
    )
    for number in range(lines):
        count = billed.get(f"{held.batch['id']}/{number}", 0)
        if count != (f"line-{number}" in succeeded):
            held.wrong.append(f"line-{number} is billed {count} times")
    audit = installation.audit()
    if audit["residual_tokens"] != 0:
        held.wrong.append(f"the residual is {audit['residual_tokens']}")
    held.figures = {
        "lines in the output": len(succeeded),
        "lines in the error file": sum(found.values()) - len(succeeded),
        "lines billed": len(billed),
        "attempts with a usage event": _count(
            installation, "select count(*) from usage_event where line is not null"
        ),
        "repeated and absorbed": _count(
            installation, "select count(*) from usage_event where absorbed_reasons ? 'repeated'"
        ),
        "residual": int(audit["residual_tokens"]),
    }


def _count(installation: Installation, query: str) -> int:
    return int(installation.sql(query)[0][0])


def _await(done: Any, limit_s: float) -> None:
    """Until it says yes or the time is over; then what is left is found by the check."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if done():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)


def show(held: Held) -> None:
    """Print it."""
    kills = ", ".join(f"{name} {count}" for name, count in sorted(held.kills.items()))
    print(f"{held.batch['status']} in {held.seconds:.1f} s; kill -9: {kills}")
    print(
        f"  request_counts {held.batch['request_counts']}, usage {held.batch['usage']['total_tokens']} tokens"
    )
    for name, value in held.figures.items():
        print(f"  {name}: {value}")
    print(f"  wrong: {len(held.wrong)}")
    for line in held.wrong[:20]:
        print(f"    {line}")


def main() -> int:
    """Run in this process; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.batch_kills", description=__doc__)
    parser.add_argument("--lines", type=int, default=2_000, help="lines of the batch (default 2000)")
    parser.add_argument("--kills", type=int, default=10, help="how many kills (default 10)")
    parser.add_argument("--seed", type=int, default=1, help="which part of a kind is killed (default 1)")
    words = parser.parse_args()
    stop_children_on_sigterm()
    try:
        held = run(words.lines, words.kills, words.seed)
    except DidNotStart as exc:
        print(exc, file=sys.stderr)
        return 2
    show(held)
    return 1 if held.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
