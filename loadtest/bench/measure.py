"""One round over one subject: the loads, and its CPU time for each."""

import os
import subprocess
from dataclasses import dataclass, field
from typing import Any

import orjson

from loadtest.bench.shapes import PLAIN_TOKENS, TOKENS
from loadtest.bench.subjects import Subject
from loadtest.children import cores, python
from loadtest.settings import child_environment

_LOAD_S_MAX = 600


@dataclass(frozen=True, slots=True)
class Load:
    """One way to drive a subject."""

    name: str
    model: str
    stream: bool
    connections: int
    requests: int

    @property
    def output_tokens(self) -> int:
        """Tokens of all its answers."""
        return self.requests * (TOKENS if self.stream else PLAIN_TOKENS)


WARM_UP = Load("warm", "s128x0", False, 8, 200)
LOADS = (
    Load("plain1", "s128x0", False, 1, 600),
    Load("plain64", "s128x0", False, 64, 6000),
    Load("burst", "s128x0", True, 32, 600),
    Load("paced", "s128x10", True, 64, 256),
    Load("paced_usage", "u128x10", True, 64, 256),
)
PLAIN_LOADS = LOADS[:2]


@dataclass(slots=True)
class Tally:
    """What a subject has been sent so far, for holding its bill against."""

    requests: int = 0
    output_tokens: int = 0
    problems: list[str] = field(default_factory=list)


def run_load(subject: Subject, load: Load, tally: Tally) -> dict[str, Any]:
    """Drive once; the driver's figures, with `cpu_us_request` and, for streams, `cpu_us_token`; of a subject
    that uses Valkey `valkey_us_request` and `both_us_request` too.
    """
    command = python(
        "-m", "loadtest.bench.driver", str(subject.port), load.model, "stream" if load.stream else "plain",
        str(load.connections), str(load.requests)
    )  # fmt: skip
    keys, valkey = "\n".join(subject.take_keys(load.requests)), subject.valkey
    before, valkey_before = subject.child.cpu_s(), 0.0 if valkey is None else valkey.cpu_s()
    done = subprocess.run(
        command, capture_output=True, timeout=_LOAD_S_MAX, check=False, input=keys.encode(),
        env=child_environment({}), preexec_fn=lambda: os.sched_setaffinity(0, {cores()[0]}),
    )  # fmt: skip
    used_s = subject.child.cpu_s() - before
    if done.returncode:
        raise RuntimeError(f"the driver failed: {done.stderr.decode()[-1000:]}")
    result: dict[str, Any] = orjson.loads(done.stdout)
    result["cpu_us_request"] = round(1e6 * used_s / load.requests, 1)
    if valkey is not None:
        valkey_s = valkey.cpu_s() - valkey_before
        result["valkey_us_request"] = round(1e6 * valkey_s / load.requests, 1)
        result["both_us_request"] = round(1e6 * (used_s + valkey_s) / load.requests, 1)
    if load.stream:
        result["cpu_us_token"] = round(1e6 * used_s / load.output_tokens, 2)
    tally.requests += load.requests
    tally.output_tokens += load.output_tokens
    tally.problems += [f"{load.name}: {count} × {what}" for what, count in result["problems"].items()]
    return result


def run_round(
    subject: Subject, tally: Tally, scale: float, loads: tuple[Load, ...] = LOADS
) -> dict[str, dict[str, Any]]:
    """Each of these loads once."""
    results = {}
    for load in loads:
        sized = Load(
            load.name,
            load.model,
            load.stream,
            load.connections,
            max(load.connections, int(load.requests * scale)),
        )
        results[load.name] = run_load(subject, sized, tally)
    return results
