"""`python -m loadtest.usage_months --events 1000000 --kills 200`: three months of usage, generated, through
the real consumers into PostgreSQL, with duplicates, out of order, some of it after its month was invoiced,
over a change of prices. Then the ledger, the usage report and every invoice are held against sums of whole
numbers made here. Exit status 1 where something differs, 2 when the installation did not start.

`--kills`: so many kill -9 of billing, PostgreSQL and Valkey meanwhile. Without them it prints how fast usage
was recorded in each tenth of the run, and how long a month's usage and costs take. `--no-invoices`: only the
usage report is held against the sums, which for ten million events saves most of the time.
"""

import argparse
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import redis

from loadtest import plain_http
from loadtest.children import DidNotStart, stop_children_on_sigterm
from loadtest.faults.parts import Installation

MODELS: Final = ("small", "large")
TENANTS: Final = 3
KEYS: Final = 20
_MONTHS: Final = ("2026-08", "2026-09", "2026-10")
_BATCH: Final = 1_000
# So many wait in the stream at most, as they would if consumers keep up.
_WAITING_MOST: Final = 20_000
_DAY_MS: Final = 86_400_000
_LIMIT_S: Final = 3_600.0
# An audit of everything takes two minutes a million on a quiet machine, and more on a busy one.
_ANSWER_S: Final = 3_600.0
# USD per million: input, cached input, output; until the change, and after it.
_PRICES: Final = {
    "small": ((150_000, 75_000, 600_000), (120_000, 30_000, 700_000)),
    "large": ((3_000_000, 300_000, 15_000_000), (2_500_000, 250_000, 12_345_678)),
}
# No engine runs here.
_OF_ENGINES: Final = {"unreachable", "no_counters", "residual", "request_unknown", "counter_lost"}
_KINDS: Final = ("uncached_input", "cached_input", "output")
_FLEX: Final = {"small": (50_000, 20_000, 200_001)}


def _ms(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp()) * 1000  # type: ignore[misc, arg-type]


_EDGES: Final = [_ms(2026, month, 1) for month in (8, 9, 10, 11)]
_CHANGE_MS: Final = _ms(2026, 9, 15)


@dataclass(slots=True)
class Books:
    """What must be found. `lines`: by tenant, month, project, model, class, kind and price, the tokens and
    their exact amount in pico-dollars.
    """

    requests: Counter[str] = field(default_factory=Counter)
    lines: defaultdict[tuple[Any, ...], list[int]] = field(
        default_factory=lambda: defaultdict(lambda: [0, 0])
    )

    def add(self, event: dict[str, Any], month: int) -> None:
        """Count an event that is recorded."""
        self.requests[event["tenant"]] += 1
        billed = event["billed"]
        after = event["started_ms"] >= _CHANGE_MS
        prices = _PRICES[event["model"]][after]
        if event["class"] == "flex" and event["model"] in _FLEX:
            prices = _FLEX[event["model"]]
        kinds = (billed["prompt"] - billed["cached"], billed["cached"], billed["output"])
        for kind, tokens, price in zip(
            ("uncached_input", "cached_input", "output"), kinds, prices, strict=True
        ):
            if tokens:
                where = (
                    event["tenant"], month, event["project"], event["model"], event["class"], kind, price,
                )  # fmt: skip
                self.lines[where][0] += tokens
                self.lines[where][1] += tokens * price


class Store(Installation):
    """Only the stores and two billing processes; usage is written into the stream as gateways do."""

    tenants: list[str]
    projects: dict[str, str]

    def start(self) -> None:
        """With models, prices and tenants. Raises DidNotStart."""
        for part in (self.valkey, *self.billings):
            part.start()
        for model in MODELS:
            self.post("models", {"name": model, "context_tokens": 100_000})
            if model in _FLEX:
                self._price(model, _FLEX[model], 0, {"class": "flex"})
            for prices, since in ((_PRICES[model][1], _CHANGE_MS), (_PRICES[model][0], 0)):
                self._price(model, prices, since, {})
        made = [self.post("tenants", {"name": f"tenant-{number}"}) for number in range(TENANTS)]
        self.tenants = [each["tenant"] for each in made]
        keys = [self.post("keys", {"tenant": tenant}) for tenant in self.tenants]
        self.projects = {tenant: key["project"] for tenant, key in zip(self.tenants, keys, strict=True)}

    def _price(self, model: str, prices: tuple[int, ...], since: int, more: dict[str, Any]) -> None:
        names = ("input", "cached_input", "output")
        texts = {name: f"{price / 10**6:.6f}" for name, price in zip(names, prices, strict=True)}
        self.post("prices", {"model": model, "from": since, "confirmed": True, **texts, **more})

    def stop(self) -> None:
        for part in (*self.billings, self.valkey):
            part.stop()
        self.postgres.stop()
        self.redis.close()

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Of whichever billing process answers, as often as it takes."""
        deadline = time.monotonic() + 120
        headers = (
            self._admin() | {"idempotency-key": random.randbytes(12).hex()}
            if method == "POST"
            else self._admin()
        )
        while True:
            for url in self.admin_urls:
                with contextlib.suppress(httpx.TransportError):
                    answer = plain_http.request(
                        method, f"{url}/admin/v1/{path}", headers=headers, timeout=_ANSWER_S, **more
                    )
                    if answer.status_code < 500 and "in_use" not in answer.text:
                        return answer
            if time.monotonic() > deadline:
                raise DidNotStart(f"no billing process answers {method} {path}")
            time.sleep(0.2)


def events(store: Store, count: int, seed: int) -> Iterator[tuple[dict[str, Any], int]]:
    """So many events with the number of their month, spread over the months."""
    dice = random.Random(seed)
    for number in range(count):
        tenant, model = dice.choice(store.tenants), dice.choice(MODELS)
        month = dice.randrange(3)
        first, last = _EDGES[month], _EDGES[month + 1] - 1
        # Many near the ends of months and the change of prices, where mistakes are.
        where = dice.random()
        ended = first if where < 0.001 else last if where < 0.002 else dice.randint(first, last)
        started = min(ended, _CHANGE_MS - dice.randint(0, 1)) if month == 1 and where > 0.999 else ended - 900
        prompt, output = dice.randint(1, 4_000), dice.randint(0, 2_000)
        cached = dice.choice((0, dice.randint(0, prompt)))
        complete = dice.random() > 0.02
        class_ = dice.choice(("on_demand", "on_demand", "flex"))
        used = {"prompt": prompt, "cached": cached, "output": output}
        none = {"prompt": 0, "cached": 0, "output": 0}
        ending = "complete" if complete else "engine_died"
        lost = {"engine_died": {"prompt": prompt, "output": output}}
        yield {
            "v": 1, "class": class_, "contract": None, "instance": f"i-{number % 4}", "epoch": "e",
            "request_id": f"req_{seed:04x}{number:020x}", "tenant": tenant, "project": store.projects[tenant],
            "key_id": f"key_{number % KEYS}", "model": model, "pool": model, "cell": model, "route": "chat",
            "stream": True, "weights": {"version": 1, "w_in_mu": 1, "w_cached_mu": 1, "w_out_mu": 1},
            "samples": 1, "started_ms": started, "gateway": "gw", "ended_ms": ended,
            "first_token_ms": started + 100, "waited_ms": 0, "ending": ending,
            "usage_source": "engine", "anomaly": None, "produced": used,
            "delivered": {"output": output if complete else 0}, "billed": used if complete else none,
            "absorbed": {"prompt": 0, "output": 0, "reasons": {}} if complete
            else {"prompt": prompt, "output": output, "reasons": lost},
            "units_mu": 1, "http_status": 200, "decision": None, "ignored": [], "provider": None,
        }, month  # fmt: skip


class Run:
    """One run, and what was found wrong in it."""

    def __init__(self, store: Store, *, killed: bool) -> None:
        self.store = store
        self._killed = killed
        self.books = Books()
        self.wrong: list[str] = []
        # The last time: when, how much was recorded, and the CPU seconds of who records.
        self._mark: tuple[float, int, float] | None = None
        self._dice = random.Random(7)

    def send(self, count: int, seed: int, only: int | None = None) -> None:
        """Send so many, shuffled, some of them twice; `only` of one month."""
        pending: list[dict[str, Any]] = []
        sent, tenth = 0, max(1, count // 10 // (5 * _BATCH)) * 5 * _BATCH
        for event, month in events(self.store, count, seed):
            if only is not None and month != only:
                continue
            self.books.add(event, month)
            pending.append(event)
            if self._dice.random() < 0.05:
                pending.append(event)
            if len(pending) >= 5 * _BATCH:
                self._write(pending)
                sent += 5 * _BATCH
                pending = []
                if sent % tenth == 0:
                    self.mark()
        self._write(pending)
        self._wait(0)
        self.mark()

    def mark(self) -> None:
        """Say what it cost since the last time, unless parts of it are killed, whose CPU seconds are lost."""
        if self._killed:
            return
        recorded = max(0, self.books.requests.total() - self._left())
        before, self._mark = self._mark, (time.monotonic(), recorded, cpu_s(self.store))
        if before is None:
            return
        seconds, events, used_s = (b - a for a, b in zip(before, self._mark, strict=True))
        if events > 0:
            print(
                f"{recorded:,} recorded; since then {events / seconds:.0f} a second, "
                f"{used_s / events * 1e6:.0f} us of a core each in billing and PostgreSQL",
                flush=True,
            )

    def _write(self, pending: list[dict[str, Any]]) -> None:
        """As gateways do: again until Valkey has them. What was written before it died may come twice."""
        self._dice.shuffle(pending)
        for start in range(0, len(pending), _BATCH):
            while True:
                try:
                    with self.store.redis.pipeline(transaction=False) as pipe:
                        for event in pending[start : start + _BATCH]:
                            pipe.xadd(f"{{c:{event['cell']}}}:usage", {"e": json.dumps(event)})
                        pipe.execute()
                    break
                except redis.RedisError:
                    time.sleep(0.05)
        self._wait(_WAITING_MOST)

    def _wait(self, most: int) -> None:
        deadline = time.monotonic() + _LIMIT_S
        while self._left() > most:
            if time.monotonic() > deadline:
                raise DidNotStart("usage is not recorded")
            time.sleep(0.02)

    def _left(self) -> int:
        try:
            return sum(int(self.store.redis.xlen(f"{{c:{model}}}:usage")) for model in MODELS)
        except redis.RedisError:
            return 10**9

    def check_usage(self) -> None:
        """The usage report of all months, by tenant, model and class."""
        report = self.store.ask(
            "GET", f"usage?by=tenant,model,class&from={_EDGES[0]}&until={_EDGES[-1]}&limit=1000"
        ).json()
        expected: Counter[tuple[str, ...]] = Counter()
        for (tenant, _, _, model, class_, _, _), (_, amount) in self.books.lines.items():
            expected[tenant, model, class_] += amount
        found = {
            (line["tenant"], line["model"], line["class"]): int(Fraction(line["amount"]) * 10**12)
            for line in report["lines"]
        }
        if found != dict(expected):
            self.wrong.append(f"usage: {found} instead of {dict(expected)}")
        if report["total"]["requests"] != self.books.requests.total():
            self.wrong.append(f"{report['total']['requests']} of {self.books.requests.total()} requests")

    def close(self, month: int, late: Books | None) -> None:
        """Close a month of each tenant, and hold its invoice against the sums; `late`: what came of the month
        before after its invoice.
        """
        for tenant in self.store.tenants:
            while True:
                answer = self.store.ask("POST", "invoices", json={"tenant": tenant, "period": _MONTHS[month]})
                if answer.status_code == 201:
                    break
                if answer.json()["error"]["code"] != "usage_not_recorded":
                    raise DidNotStart(answer.text)
                time.sleep(0.2)
            made = answer.json()
            expected = self._of(self.books, tenant, month)
            if late is not None:
                expected |= self._of(late, tenant, month - 1)
            found = {
                (
                    line["period"], line["project"], line["model"], line["class"], line["kind"],
                    int(Fraction(line["price"]) * 10**6),
                ): (line["tokens"], int(Fraction(line["exact"]) * 10**12))
                for line in made["document"]["lines"]
            }  # fmt: skip
            if found != expected:
                self.wrong.append(f"{made['number']}: its lines are not what was used")
            self._same(made["number"])

    def _of(self, books: Books, tenant: str, month: int) -> dict[tuple[Any, ...], tuple[int, int]]:
        return {
            (_MONTHS[at], *rest): (tokens, amount)
            for (whose, at, *rest), (tokens, amount) in books.lines.items()
            if whose == tenant and at == month
        }

    def _same(self, number: str) -> None:
        check = self.store.ask("GET", f"invoices/{number}/check").json()
        if not check["same"]:
            self.wrong.append(f"{number} is not the same again")

    def check_all(self) -> None:
        """Every invoice again, and the whole audit."""
        for each in self.store.ask("GET", "invoices?limit=1000").json()["data"]:
            self._same(each["number"])
        report = self.store.ask("GET", "audit?full=true").json()
        for finding in report.get("findings", []):
            if finding["kind"] not in {
                "unreachable",
                "no_counters",
                "residual",
                "request_unknown",
                "counter_lost",
            }:
                self.wrong.append(f"audit: {finding['kind']}: {finding['message'][:300]}")

    def wait_for_days(self) -> None:
        """Until all days are added up, a minute or two after the last usage of each."""
        import psycopg

        whole = "SELECT count(*) FROM summed_day WHERE whole AND day >= %s AND day < %s"
        first, end = (edge // _DAY_MS for edge in (_EDGES[0], _EDGES[-1]))
        deadline = time.monotonic() + 600
        with psycopg.connect(self.store.postgres.uri, autocommit=True) as connection:
            while connection.execute(whole, (first, end)).fetchone() != (end - first,):
                if time.monotonic() > deadline:
                    raise DidNotStart("days are not added up")
                time.sleep(0.5)

    def time_reads(self) -> dict[str, float]:
        """95th of 40 reads of a month's usage and costs of a tenant and of all, in ms."""
        month = f"from={_EDGES[1]}&until={_EDGES[2]}"
        asked = {
            "a tenant's month": f"usage?tenant={self.store.tenants[0]}&{month}",
            "a tenant's month by day and model": f"usage?tenant={self.store.tenants[0]}&by=day,model&{month}",
            "the month of all by tenant": f"usage?by=tenant&{month}",
        }
        found = {}
        for name, path in asked.items():
            times = []
            for _ in range(40):
                begun = time.perf_counter()
                self.store.ask("GET", path)
                times.append((time.perf_counter() - begun) * 1000)
            found[name] = sorted(times)[37]
        return found


class Killer(threading.Thread):
    """Kills one part after the other, and starts it again, until there were so many kills or it is told to
    stop.
    """

    def __init__(self, store: Store, kills: int) -> None:
        super().__init__(name="killer", daemon=True)
        self.counts: Counter[str] = Counter()
        self._store = store
        self._kills = kills
        self.over = threading.Event()

    def run(self) -> None:
        dice = random.Random(11)
        while self.counts.total() < self._kills and not self.over.wait(dice.uniform(0.1, 1.5)):
            parts: list[Any] = [*self._store.billings, self._store.valkey, self._store.postgres]
            part = dice.choice(parts)
            part.kill()
            self.counts[getattr(part, "name", "postgres")] += 1
            self._start(part)

    def _start(self, part: Any) -> None:
        """Again if its port was not free yet."""
        for _ in range(5):
            try:
                part.start()
                return
            except DidNotStart:
                time.sleep(1)
        part.start()


def cpu_s(store: Store) -> float:
    """What billing and PostgreSQL have used."""
    own = [part.child.pid for part in store.billings if part.child is not None]
    mains = [psutil.Process(pid) for pid in own]
    mains += [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "postgres" and str(store.folder) in " ".join(process.info["cmdline"] or ())
    ]
    total = 0.0
    for process in [each for main in mains for each in (main, *main.children(recursive=True))]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def carry_out(store: Store, count: int, kills: int, *, invoices: bool) -> Run:
    """The run: two thirds of usage, August's invoices, more of August, then the rest."""
    run = Run(store, killed=kills > 0)
    killer = Killer(store, kills)
    killer.start()
    begun = time.monotonic()
    run.mark()
    run.send(count, 1)
    seconds = time.monotonic() - begun
    seed = 100
    while kills and killer.is_alive() and killer.counts.total() < kills:
        seed += 1
        run.send(2_000, seed)
    killer.over.set()
    killer.join()
    print(f"{count} events in {seconds:.1f} s: {count / seconds:.0f} a second; kills: {dict(killer.counts)}")
    if not kills:
        run.wait_for_days()
        for name, ms in run.time_reads().items():
            print(f"{name}: 95 % within {ms:.0f} ms", flush=True)
    run.check_usage()
    if invoices:
        check_invoices(run, count)
    return run


def check_invoices(run: Run, count: int) -> None:
    """Close the months, with late usage of the first one, and hold them against the sums."""
    run.close(0, None)
    on_time, run.books = run.books, Books()
    run.send(max(300, count // 50), 2, only=0)
    late, run.books = run.books, on_time
    run.close(1, late)
    run.close(2, None)
    for where, (tokens, amount) in late.lines.items():
        run.books.lines[where][0] += tokens
        run.books.lines[where][1] += amount
    run.books.requests += late.requests
    run.check_usage()
    run.check_all()


def run_all(events: int, kills: int, *, invoices: bool = True) -> Run:
    """An installation from its start to its end, and what was wrong. Raises DidNotStart."""
    with tempfile.TemporaryDirectory(prefix="taas-usage-months-", ignore_cleanup_errors=True) as folder:
        store = Store(Path(folder))
        try:
            store.start()
            return carry_out(store, events, kills, invoices=invoices)
        finally:
            store.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.usage_months", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="how many requests (default 100000)")
    parser.add_argument("--kills", type=int, default=0, help="so many kill -9 meanwhile (default 0)")
    parser.add_argument("--no-invoices", action="store_true", help="record, and check the usage report alone")
    args = parser.parse_args()
    stop_children_on_sigterm()
    try:
        run = run_all(args.events, args.kills, invoices=not args.no_invoices)
    except DidNotStart as exc:
        print(exc, file=sys.stderr)
        return 2
    for each in run.wrong:
        print(f"WRONG: {each}")
    print("nothing is lost, nothing is twice" if not run.wrong else f"{len(run.wrong)} differences")
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
