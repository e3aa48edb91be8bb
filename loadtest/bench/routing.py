"""Eight engines with prefix caches behind each way to choose among them: `python -m loadtest.bench.routing`.

Prompts have 2,000 tokens. A part of them, the sharing ratio, is the beginning that the requests of one of
many groups have in common. Arrivals are random, and the same for each way. It says how long callers wait for
the first token (p50 / p99 in ms), which part of all prompts was cached, and how many requests a second were
answered. Besides the gateway it measures a caller that takes engines in turn, and one that knows all open
requests and takes the engine with the fewest. `--other NAME=COMMAND` adds a router; {port} and {engines} in
its command are replaced.
"""

import argparse
import asyncio
import random
import re
import shlex
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from loadtest import plain_http
from loadtest.bench.routed_engines import CONTEXT_TOKENS, MODEL
from loadtest.children import Child, answers, free_port, python, stop_children_on_sigterm
from loadtest.own_stack import OwnStack, Served
from loadtest.quantiles import quantile_ms

ENGINES: Final = 8
PROMPT_TOKENS: Final = 2_000
ANSWER_TOKENS: Final = 32
GROUPS: Final = 48
RATIOS: Final = (0, 10, 25, 50, 75, 90)
# The first part of each run fills the caches and is not measured.
_WARM: Final = 0.3
_TOKEN: Final = b'"content":"'
_PATIENCE_S: Final = 60.0


@dataclass(slots=True)
class Run:
    """What one way did at one ratio. Times in seconds."""

    first_tokens: list[float] = field(default_factory=list)
    ended: int = 0
    failed: int = 0
    seconds: float = 0.0
    hit_rate: float = 0.0


class Way(ABC):
    """A way to choose an engine. `urls`: of the engines."""

    name: str
    key = ""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = urls
        self.open = [0] * len(urls)

    @abstractmethod
    def choose(self) -> str:
        """Where to send the next request."""

    def start(self, folder: Path) -> None:
        """Start what it needs, if it needs anything."""
        del folder

    def stop(self) -> None:
        """Stop it."""
        self.open = [0] * len(self.urls)


class Turns(Way):
    """One engine after the other."""

    name = "round robin"

    def __init__(self, urls: Sequence[str]) -> None:
        super().__init__(urls)
        self._turn = count()

    def choose(self) -> str:
        return self.urls[next(self._turn) % len(self.urls)]


class LeastOpen(Way):
    """The engine with the fewest open requests; of several, any."""

    name = "least loaded"

    def choose(self) -> str:
        least = min(self.open)
        return self.urls[random.choice([at for at, each in enumerate(self.open) if each == least])]


class Ours(Way):
    """Gateways in turn, each of which decides by itself."""

    name = "gateway"

    def __init__(self, urls: Sequence[str], gateways: int) -> None:
        super().__init__(urls)
        self._gateways = gateways
        self._turn = count()

    def start(self, folder: Path) -> None:
        served = Served(MODEL, self.urls[0], CONTEXT_TOKENS, routes=("chat",))
        self._stack = OwnStack(folder, [served], gateways=self._gateways, pinned=False)
        self._stack.start()
        for url in self.urls[1:]:
            self._stack.post("instances", {"model": MODEL, "url": url, "key": None})
        time.sleep(2.0)  # gateways read the instances twice a second
        self.key = self._stack.key

    def choose(self) -> str:
        return f"http://127.0.0.1:{self._stack.ports[next(self._turn) % self._gateways]}"

    def stop(self) -> None:
        self._stack.stop()


class Other(Way):
    """A router that somebody else wrote."""

    def __init__(self, urls: Sequence[str], name: str, command: str) -> None:
        super().__init__(urls)
        self.name = name
        self._command = command

    def start(self, folder: Path) -> None:
        self._port = free_port()
        words = shlex.split(self._command.format(port=self._port, engines=" ".join(self.urls)))
        self._child = Child(self.name, words, None, folder)
        self._child.wait_until(answers(f"{self.choose()}/v1/models"))

    def choose(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def stop(self) -> None:
        self._child.stop()


@dataclass(frozen=True, slots=True)
class Request:
    """When it is due, and its prompt: what its group shares, and its own."""

    at_s: float
    shared: str
    own: str


def words(rng: random.Random, tokens: int) -> str:
    """A text of so many tokens, as the simulated engine counts them."""
    letters = f"{rng.getrandbits(12 * tokens):0{3 * tokens}x}" if tokens else ""
    return "".join(f" {letters[at : at + 3]}" for at in range(0, len(letters), 3))


def schedule(ratio: int, rate: float, seconds: float, number: int) -> list[Request]:
    """The requests of one run; `number`: of the run, so that no two have a text in common."""
    rng = random.Random(f"{ratio} {number}")
    shared_tokens = PROMPT_TOKENS * ratio // 100
    groups = [words(rng, shared_tokens) for _ in range(GROUPS)]
    requests, at_s = [], 0.0
    while (at_s := at_s + rng.expovariate(rate)) < seconds:
        requests.append(Request(at_s, rng.choice(groups), words(rng, PROMPT_TOKENS - shared_tokens)))
    return requests


async def drive(way: Way, requests: Sequence[Request], seconds: float) -> Run:
    """Send all of them when they are due, and wait for the answers."""
    run, began = Run(), time.perf_counter()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, headers={"authorization": f"Bearer {way.key}"}
    ) as session:

        async def ask(request: Request) -> None:
            await asyncio.sleep(began + request.at_s - time.perf_counter())
            url = way.choose()
            at = way.urls.index(url) if url in way.urls else None
            if at is not None:
                way.open[at] += 1
            sent = time.perf_counter()
            try:
                first = await _first_token(session, url, request)
            finally:
                if at is not None:
                    way.open[at] -= 1
            if first is None:
                run.failed += 1
            elif request.at_s >= seconds * _WARM:
                run.first_tokens.append(first - sent)
                run.ended += 1

        await asyncio.wait_for(asyncio.gather(*map(ask, requests)), seconds + _PATIENCE_S)
    run.seconds = time.perf_counter() - began - seconds * _WARM
    return run


async def _first_token(session: aiohttp.ClientSession, url: str, request: Request) -> float | None:
    """When the first token came, once the answer has ended; None if the request failed."""
    messages = [{"role": "system", "content": request.shared}] if request.shared else []
    messages.append({"role": "user", "content": request.own})
    body = {
        "model": MODEL, "messages": messages, "max_tokens": ANSWER_TOKENS, "min_tokens": ANSWER_TOKENS,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    first = None
    headers = {"content-type": "application/json"}
    async with session.post(f"{url}/v1/chat/completions", data=orjson.dumps(body), headers=headers) as answer:
        if answer.status != 200:
            return None
        async for piece in answer.content.iter_any():
            if first is None and _TOKEN in piece.replace(b'"content":""', b""):
                first = time.perf_counter()
    return first


def counters(urls: Sequence[str]) -> tuple[float, float]:
    """Prompt tokens of all engines so far, and how many of them were cached."""
    prompt = cached = 0.0
    for url in urls:
        page = plain_http.get(f"{url}/metrics").text
        prompt += sum(
            map(float, re.findall(r"^vllm:prefix_cache_queries_total\S* (\S+)$", page, re.MULTILINE))
        )
        cached += sum(map(float, re.findall(r"^vllm:prefix_cache_hits_total\S* (\S+)$", page, re.MULTILINE)))
    return prompt, cached


def measure(way: Way, arguments: argparse.Namespace) -> dict[int, Run]:
    """All ratios."""
    runs = {}
    for ratio in arguments.ratios:
        for url in way.urls:
            plain_http.post(f"{url}/sim/reset").raise_for_status()
        requests = schedule(ratio, arguments.rate, arguments.seconds, arguments.number)
        before = counters(way.urls)
        run = asyncio.run(drive(way, requests, arguments.seconds))
        after = counters(way.urls)
        run.hit_rate = (after[1] - before[1]) / max(1.0, after[0] - before[0])
        runs[ratio] = run
        print(f"{way.name} at {ratio} %: {row(run)}", file=sys.stderr)
    return runs


def row(run: Run) -> dict[str, Any]:
    """What the table shows of a run."""
    return {
        "ttft_ms_p50": quantile_ms(run.first_tokens, 0.5), "ttft_ms_p99": quantile_ms(run.first_tokens, 0.99),
        "ttft_ms_mean": round(1000 * statistics.fmean(run.first_tokens or [0.0]), 1),
        "hit_rate": round(run.hit_rate, 3), "requests_per_s": round(run.ended / run.seconds, 2),
        "failed": run.failed,
    }  # fmt: skip


def show(results: dict[str, dict[int, Run]]) -> None:
    """One table: TTFT p50 / p99 in ms, hit rate, requests a second."""
    names = list(results)
    print("| sharing | " + " | ".join(names) + " |")
    print("| --- |" + " --- |" * len(names))
    for ratio in next(iter(results.values())):
        cells = [row(results[name][ratio]) for name in names]
        print(
            f"| {ratio} % | "
            + " | ".join(
                f"{cell['ttft_ms_p50'] or 0:.0f} / {cell['ttft_ms_p99'] or 0:.0f}, {cell['hit_rate']:.0%}, "
                f"{cell['requests_per_s']:.1f}" + (f", {cell['failed']} failed" if cell["failed"] else "")
                for cell in cells
            )
            + " |"
        )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.routing", description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each run (default 40)")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second (default 10)")
    parser.add_argument("--gateways", type=int, default=2, help="gateways, in turn (default 2)")
    parser.add_argument("--ratios", type=int, nargs="+", default=RATIOS, metavar="PERCENT")
    parser.add_argument("--number", type=int, default=1, help="of the schedule, to repeat it or not")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these ways")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=COMMAND")
    return parser.parse_args(arguments)


def main() -> int:
    """Measure one way after the other; the exit status is 1 if a request failed."""
    arguments = parse()
    stop_children_on_sigterm()
    ports = [free_port() for _ in range(ENGINES)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    ways: list[Way] = [Turns(urls), LeastOpen(urls), Ours(urls, arguments.gateways)]
    ways += [Other(urls, *given.split("=", 1)) for given in arguments.other]
    results = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taas-routing-")))
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own where we are root
        engines = Child(
            "engines", python("-m", "loadtest.bench.routed_engines", *map(str, ports)), None, folder
        )
        stack.callback(engines.stop)
        engines.wait_until(answers(f"{urls[-1]}/health"))
        for number, way in enumerate(ways):
            if arguments.only and way.name not in arguments.only:
                continue
            own = folder / str(number)
            own.mkdir(mode=0o755)
            try:
                way.start(own)
                results[way.name] = measure(way, arguments)
            finally:
                way.stop()
    show(results)
    return 1 if any(run.failed for runs in results.values() for run in runs.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
