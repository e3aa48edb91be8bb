"""A month of a tenant in two minutes, on real vLLM: a contract, a price that changes in its middle, a budget
that stops, the engine killed under its streams, machines taken back against the contract, and the invoice.
Its tokens are what the engine itself counted less what is absorbed, and whoever has the export and a public
key can work all of it out without us.

The month does not wait for its end: the period is one that ends at the next midnight of a zone, and the
billing process that closes it is told by `MovedClock` that it is five minutes later than that. Nothing else
is told so.
`TAAS_MONTH_REQUESTS=200` makes it longer.
"""

import json
import os
import random
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import openai
import pytest
from openai import OpenAI

from billing.invoices.periods import name_of, period
from billing.wire import redis_keys
from billing.wire.evidence import make_key
from billing.wire.tokens import NO_TOKENS, CounterPair
from deploy import taas_verify
from tests.e2e.raw_caller import CHAT, LONG, ROUTES, TOKEN, RawCaller, body_of, the_error
from tests.e2e.test_capacity import calibrate
from tests.fixtures.gateway import wait_until
from tests.fixtures.moved_clock import MovedClock
from tests.fixtures.stack import MODEL, Stack, kill_9

pytestmark = pytest.mark.vllm

REQUESTS = int(os.environ.get("TAAS_MONTH_REQUESTS", "16"))
CALLERS = 4
# In USD per million tokens, within the contract: before the change and after it.
PRICES = (("0.05", "0.20"), ("0.20", "0.90"))
# Until a period with reserved capacity may be closed, after its end.
COUNTED_S = 300
WORDS = ("sea", "salt", "tide", "moon", "wind", "stone")
ZONES = ("UTC", "Asia/Kolkata", "Asia/Kathmandu", *(f"Etc/GMT{hours:+d}" for hours in range(-14, 13)))


@dataclass(kw_only=True)
class Month:
    """The tenant, and its period."""

    stack: Stack
    tenant: str
    key: str
    zone: str
    day: int
    period: str
    ends_ms: int
    contract: str = ""

    def price(self, prices: tuple[str, str]) -> None:
        """Of tokens within the contract, from now on."""
        words = ("price", "set", "--model", MODEL, "--contract", self.contract, "--yes")
        self.stack.taas(*words, "--input", prices[0], "--output", prices[1])

    def use(self, count: int) -> None:
        """So many requests, in all tiers. Some callers leave, and some want two answers to one prompt, which
        the engine counts twice.
        """
        with ThreadPoolExecutor(CALLERS) as callers:
            list(callers.map(self._ask, range(count)))
        self.stack.await_rest()

    def _ask(self, number: int) -> None:
        dice = random.Random(number)
        prompt = " ".join(dice.choice(WORDS) for _ in range(dice.randint(3, 40)))
        with (
            OpenAI(base_url=f"{self.stack.gateway.url}/v1", api_key=self.key, timeout=120) as client,
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=dice.randint(4, 24),
                stream=True, service_tier=dice.choice(["auto", "auto", "default", "flex"]),
                n=2 if number % 8 == 7 else 1,
            ) as stream,
        ):  # fmt: skip
            for read, _ in enumerate(stream):
                if number % 6 == 5 and read == 3:
                    break

    def absorbed(self, without: list[str]) -> CounterPair:
        """Of all its requests but these."""
        ((prompt, output),) = self.stack.sql(
            "SELECT coalesce(sum(absorbed_prompt), 0), coalesce(sum(absorbed_output), 0) FROM usage_event "
            "WHERE tenant = %s AND NOT request_id = ANY(%s)",
            self.tenant, without,
        )  # fmt: skip
        return CounterPair(int(prompt), int(output))

    def short_mu(self) -> int:
        """What its contract was short of so far."""
        query = "SELECT coalesce(sum(shortfall_mu), 0) FROM contract_minute WHERE contract_id = %s"
        return int(self.stack.sql(query, self.contract)[0][0])


def next_midnight(now: datetime) -> tuple[str, datetime]:
    """The zone whose day ends next, and when: so that the run is over before."""
    ends = []
    for zone in ZONES:
        local = now.astimezone(ZoneInfo(zone))
        midnight = datetime.combine(local.date() + timedelta(days=1), datetime.min.time(), ZoneInfo(zone))
        ends.append((midnight.astimezone(UTC), zone, midnight))
    _, zone, midnight = min(each for each in ends if each[0] > now + timedelta(minutes=20))
    return zone, midnight


@pytest.fixture
def month(stack: Stack) -> Any:
    """It has terms with a period that ends soon, and a contract at a price. Afterwards the pool is as it
    was.
    """
    stack.await_rest()
    before = stack.admin("GET", f"pools/{MODEL}")
    calibrate(stack, 256, "1000000")
    stack.taas("pool", "set", MODEL, "--instances", "1", "--headroom", "0")
    zone, midnight = next_midnight(datetime.now(UTC))
    tenant, key = stack.new_tenant()
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    name = name_of(now_ms, midnight.day, zone)
    ends_ms = period(name, midnight.day, zone)[1]
    assert ends_ms == midnight.timestamp() * 1000
    made = Month(
        stack=stack, tenant=tenant, key=key, zone=zone, day=midnight.day, period=name, ends_ms=ends_ms
    )
    stack.taas("tenant", "set", tenant, "--time-zone", zone)
    stack.taas(
        "terms", "set", "--tenant", tenant, "--day", str(midnight.day), "--tax", "19", "--tax-name", "VAT",
        "--from", "2020-01-01",
    )  # fmt: skip
    signed = json.loads(
        stack.taas(
            "contract", "sign", "--tenant", tenant, "--pool", MODEL, "--units", "200", "--until", "1y",
            "--notice-days", "0", "--overflow", "spill", "--yes", "--json",
        )
    )  # fmt: skip
    made.contract = signed["contract"]
    stack.taas(
        "contract", "price", made.contract, "--unit-hour", "0.50", "--sla", "200", "--from", "2020-01-01"
    )
    bucket = redis_keys.contract_bucket(stack.cell, tenant)
    wait_until(lambda: stack.redis.hget(bucket, "id") == made.contract, "contract in force", 30)
    yield made
    stack.taas("contract", "notice", made.contract, "--by", "operator", "--yes")
    wait_until(lambda: not stack.redis.exists(bucket), "end of the contract", 30)
    stack.taas(
        "pool", "set", MODEL, "--instances", str(before["instances"]), "--headroom", str(before["headroom"])
    )  # fmt: skip


def test_fault_26_and_27_in_a_month_whose_invoice_is_what_the_engine_counted_less_what_is_absorbed(
    month: Month, tmp_path: Path
) -> None:
    stack = month.stack
    began = stack.engine_counters()
    month.price(PRICES[0])
    month.use(REQUESTS)
    stop_at_a_budget(month)
    month.price(PRICES[1])
    month.use(REQUESTS)
    counted = stack.engine_counters() - began
    before = stack.instance()
    assert before is not None
    lost = kill_the_engine(month)
    take_its_machine_back(month)
    stack.await_engine(not_epoch=before["epoch"])
    stack.await_served()
    began = stack.engine_counters()
    month.use(4)
    counted += stack.engine_counters() - began
    stack.assert_conserved()
    billed = counted - month.absorbed(lost)

    key_file = tmp_path / "evidence.key"
    key_file.write_text(make_key())
    key_file.chmod(0o600)
    clock = MovedClock(stack.valkey.port)
    with closing(clock):
        url = stack.start_billing_beside(
            "closing", TAAS_REDIS_URL=clock.url, TAAS_EVIDENCE_KEY_FILE=str(key_file), TAAS_ISSUER="taas"
        )
        try:
            invoice = close_it(month, clock, url)
            export = exported(month, url, tmp_path)
        finally:
            stack.stop_process("closing")
    document = invoice["document"]
    usage = [line for line in document["lines"] if line["type"] == "usage"]
    tokens = CounterPair(
        sum(line["tokens"] for line in usage if line["kind"] != "output"),
        sum(line["tokens"] for line in usage if line["kind"] == "output"),
    )
    print(f"\nthe engine counted {counted}, absorbed {counted - billed}, on the invoice {tokens}")
    assert tokens == billed != NO_TOKENS
    assert counted != billed
    assert {line["price"] for line in usage if line["contract"]} == {each for pair in PRICES for each in pair}
    (short,) = (line for line in document["lines"] if line["type"] == "sla_credit")
    assert short["milliunits_short"] == month.short_mu()
    assert float(short["amount"]) < 0
    (held,) = (line for line in document["lines"] if line["type"] == "capacity")
    assert held["until_ms"] == month.ends_ms
    assert document["not_billed"] == {"quarantined": 0, "unpriced": 0}
    said = verified_alone(export, tmp_path)
    assert (said["good"], said["notes"], said["checked"]["invoices"]) == (True, [], 1)
    assert said["checked"]["receipts"] == len({*stack.sql(PRICED, month.tenant)})


PRICED = (
    "SELECT t.transaction_id FROM ledger_transaction t JOIN usage_event u USING (request_id) "
    "WHERE u.tenant = %s AND t.pricing = 'priced'"
)


def stop_at_a_budget(month: Month) -> None:
    """A key that may spend 30 millionths of a dollar: requests of 16 at most."""
    stack = month.stack
    made = json.loads(stack.taas("key", "create", "--tenant", month.tenant, "--json"))
    stack.taas("budget", "set", "--key", made["key_id"], "--usd", "0.00003", "--per", "month")
    with OpenAI(base_url=f"{stack.gateway.url}/v1", api_key=made["key"], timeout=60) as client:

        def ask_twelve_times() -> None:
            for _ in range(12):
                ask()

        def ask() -> None:
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hello."}], max_tokens=24
            )
            # What it held is given back.
            stack.await_rest()

        ask()
        with pytest.raises(openai.RateLimitError) as refused:
            ask_twelve_times()
    assert refused.value.code == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"


def kill_the_engine(month: Month) -> list[str]:
    """Under five streams, which end with one error each and are billed nothing (faults 26 and 27). Their
    ids.
    """
    stack = month.stack
    whole = RawCaller(stack, CHAT, body_of(CHAT, tokens=LONG, stream=False), month.key)
    streams = [RawCaller(stack, path, body_of(path, tokens=LONG), month.key) for path in ROUTES]
    try:
        for path, caller in zip(ROUTES, streams, strict=True):
            caller.read_until(TOKEN[path], 3)
        ids = stack.await_open(5)
        # So that the worker and the audit have seen tokens of all five.
        counted = stack.engine_counters().generation
        wait_until(lambda: stack.engine_counters().generation > counted + 100, "tokens", 60.0)
        kill_9(stack.engine_pid())
        assert b" 50" in whole.read_all()[:13], whole.seen[:200]
        for caller in streams:
            assert "engine_failed" in the_error(caller.read_all())
    finally:
        for caller in (whole, *streams):
            caller.leave()
    with RawCaller(stack, CHAT, body_of(CHAT, tokens=4), month.key) as late:
        assert b" 503 " in late.read_all()[:20], late.seen
        assert b"retry-after" in late.seen
    for request_id in ids:
        receipt = stack.receipt(request_id, month.key)
        assert receipt["ending"] == "engine_died", receipt
        assert receipt["billed"]["output"] == 0
        assert receipt["absorbed"]["output"] == receipt["produced"]["output"]
        assert receipt["produced"]["output"] >= (3 if receipt["stream"] else 0)
    return ids


def take_its_machine_back(month: Month) -> None:
    """While its worker starts it again: the contract is cut, then the machine is given back and the engine
    starts.
    """
    stack = month.stack
    words = ("--instances", "1", "--for", "research", "--by", "now", "--break", "--yes", "--json")
    reclaim = json.loads(stack.taas("reclaim", MODEL, *words))["reclaim"]
    cut = "SELECT coalesce(sum(cut_mu), 0) FROM contract_minute WHERE contract_id = %s"
    wait_until(lambda: stack.sql(cut, month.contract)[0][0] > 0, "cut of the contract", 90)
    stack.taas("release", reclaim)


def close_it(month: Month, clock: MovedClock, url: str) -> dict[str, Any]:
    """The invoice, which cannot be closed a moment before its time."""
    words = ("invoice", "close", "--tenant", month.tenant, "--period", month.period, "--yes", "--json")
    with pytest.raises(AssertionError, match="The period lasts until"):
        month.stack.taas(*words, at=url)
    left_s = month.ends_ms / 1000 - datetime.now(UTC).timestamp()
    clock.ahead_s = int(left_s) + 1
    with pytest.raises(AssertionError, match="short of is counted until"):
        month.stack.taas(*words, at=url)
    clock.ahead_s += COUNTED_S
    invoice: dict[str, Any] = json.loads(month.stack.taas(*words, at=url))
    clock.ahead_s = 0
    assert "the same, byte by byte" in month.stack.taas("invoice", "check", invoice["number"], at=url)
    return invoice


def exported(month: Month, url: str, folder: Path) -> Path:
    """Everything of the tenant, once it is in its chain, and the public key beside it."""
    (folder / "evidence.pub").write_text(
        json.loads(month.stack.taas("evidence", "key", "--json", at=url))["public_key"]
    )
    export = folder / "export.ndjson"
    chained = "SELECT count(*) FROM usage_chain WHERE chain = %s"
    entries = (
        "SELECT count(*) FROM ledger_transaction t JOIN usage_event u USING (request_id) WHERE u.tenant = %s"
    )
    sql = month.stack.sql
    wait_until(
        lambda: sql(chained, month.tenant)[0][0] >= sql(entries, month.tenant)[0][0],
        "chain of all entries",
        60,
    )
    after = datetime.fromtimestamp(month.ends_ms / 1000, UTC).date() + timedelta(days=2)
    month.stack.taas(
        "export", "--tenant", month.tenant, "--from", "2020-01-01", "--until", str(after), "--format",
        "ndjson", "--out", str(export), at=url,
    )  # fmt: skip
    return export


def verified_alone(export: Path, folder: Path) -> dict[str, Any]:
    """What `taas-verify` says in an environment with nothing but `cryptography` and what that needs."""
    alone = folder / "alone"
    venv.create(alone, with_pip=False)
    packages = next(alone.glob("lib/python*/site-packages"))
    site = next(path for path in map(Path, sys.path) if (path / "cryptography").is_dir())
    for path in site.iterdir():
        if path.name.split(".")[0] in ("cryptography", "cffi", "_cffi_backend", "pycparser"):
            (packages / path.name).symlink_to(path)
    (folder / "taas_verify.py").write_bytes(Path(taas_verify.__file__).read_bytes())
    words = (str(alone / "bin" / "python"), str(folder / "taas_verify.py"), str(export))
    done = subprocess.run(
        [*words, "--key", str(folder / "evidence.pub"), "--json"],
        capture_output=True, text=True, env={}, cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said
