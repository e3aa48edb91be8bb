"""Capacity on real vLLM: a contract is served as reserved and says so; flex is preempted for its holder and
resumes as one stream with one bill.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from billing.cell.scripts import grant_call
from billing.wire import redis_keys
from tests.e2e.raw_caller import CHAT, COMPLETIONS, LONG, TOKEN, RawCaller, body_of
from tests.fixtures.gateway import wait_until
from tests.fixtures.stack import INSTANCE, MODEL, Stack

pytestmark = pytest.mark.vllm

SEA: list[Any] = [{"role": "user", "content": "Say something short about the sea."}]
# What greedy decoding goes on with surely, however its cache came about.
NUMBERS = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,"
# A conversation that it goes on with as surely: each token of the answer is nine times likelier than others.
COUNTING = [
    {"role": "user", "content": NUMBERS},
    {"role": "assistant", "content": " ".join(f"{number}," for number in range(1, 60))},
    {"role": "user", "content": NUMBERS},
]
COLOURS = "red, green, blue, " * 5 + "red,"
WAVES = "🌊" * 40
TOKENS = 48
ASKED = {"auto": "auto", "priority": "reserved"}
DONE = b"data: [DONE]"


@dataclass(frozen=True)
class Sold:
    """Whoever has the contract."""

    tenant: str
    key: str
    contract: str


def calibrate(stack: Stack, sequences: int, units: str) -> None:
    """Store what an instance can do, with the weights that the model has."""
    model = next(each for each in stack.admin("GET", "models")["data"] if each["name"] == MODEL)
    weights = {name: model["weights"][name] for name in ("w_in_mu", "w_cached_mu", "w_out_mu")}
    stack.admin(
        "POST", "calibrations", pool=MODEL, model=MODEL, weights=weights, capacity_units_per_second=units,
        sequences=sequences, tpot_target_ms=1000, ttft_target_ms=5000, hardware="as said by a test",
        engine_version="0.32.0", error="0", instance=INSTANCE, steps=[], remarks=[],
    )  # fmt: skip
    allotted = redis_keys.room(stack.cell)
    enough = min(sequences, 32)  # more is trusted to it step by step

    def roomy() -> bool:
        room = int(stack.redis.hget(allotted, f"m:{INSTANCE}") or 0)
        return enough <= room <= sequences

    def seen() -> object:
        return (
            stack.redis.hgetall(allotted),
            stack.admin("GET", f"pools/{MODEL}"),
            stack.admin("GET", "instances"),
        )

    wait_until(roomy, "room as calibrated", 60, instead=seen)


@pytest.fixture(scope="module")
def small_pool(stack: Stack) -> Iterator[None]:
    """Room for two sequences at once, to the last of them for sale. Whatever becomes of that, there is
    room for all tests again at the end.
    """
    stack.await_rest()
    before = stack.admin("GET", f"pools/{MODEL}")
    try:
        calibrate(stack, 2, "20000")
        stack.taas("pool", "set", MODEL, "--instances", "1", "--headroom", "0")
        yield
    finally:
        stack.taas(
            "pool",
            "set",
            MODEL,
            "--instances",
            str(before["instances"]),
            "--headroom",
            str(before["headroom"]),
        )
        calibrate(stack, 256, "1000000")


@pytest.fixture(scope="module")
def sold(stack: Stack, small_pool: None) -> Iterator[Sold]:
    """Half of what the pool can do under contract: so much that its owner is idle soon after its last
    token.
    """
    tenant, key = stack.new_tenant()
    terms = ("--units", "10000", "--until", "1y", "--notice-days", "0", "--overflow", "reject")
    signed = json.loads(
        stack.taas("contract", "sign", "--tenant", tenant, "--pool", MODEL, *terms, "--yes", "--json")
    )
    contract = redis_keys.contract_bucket(stack.cell, tenant)
    wait_until(lambda: stack.redis.hget(contract, "id") == signed["contract"], "contract in force", 30)
    yield Sold(tenant, key, signed["contract"])
    stack.taas("contract", "notice", signed["contract"], "--by", "operator", "--yes")
    wait_until(lambda: not stack.redis.exists(contract), "end of the contract", 30)


def assert_reserved(stack: Stack, sold: Sold, request_id: str, asked: str) -> None:
    """The receipt, the tenant's and the operator's, names contract, levels and the reason."""
    receipt = stack.receipt(request_id, sold.key)
    assert (receipt["class"], receipt["contract"]) == ("reserved", sold.contract)
    decision = receipt["decision"]
    assert (decision["asked"], decision["why"], decision["rate_mu_s"]) == (
        ASKED[asked],
        "within_contract",
        10_000_000,
    )
    assert 0 <= decision["level_before_mu"] < decision["level_after_mu"]
    shown = stack.taas("request", "show", request_id)
    assert sold.contract in shown
    assert "admitted: within " in shown


@pytest.mark.parametrize("asked", ["auto", "priority"])
def test_a_contract_is_served_as_reserved_to_both_sdks(stack: Stack, sold: Sold, asked: Any) -> None:
    with OpenAI(base_url=f"{stack.gateway.url}/v1", api_key=sold.key, max_retries=0, timeout=60) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=SEA, max_tokens=2, service_tier=asked
        )
        assert raw.parse().service_tier == "priority"
        assert raw.headers["x-taas-class"] == "reserved"
        assert_reserved(stack, sold, raw.headers["x-request-id"], asked)
    with (
        Anthropic(base_url=stack.gateway.url, api_key=sold.key, max_retries=0, timeout=60) as anthropic,
        anthropic.messages.stream(
            model=MODEL, max_tokens=2, messages=SEA, extra_body={"service_tier": asked}
        ) as stream,
    ):
        assert stream.get_final_message().usage.model_dump()["service_tier"] == "priority"
        assert stream.response.headers["x-taas-class"] == "reserved"
        assert_reserved(stack, sold, stream.response.headers["x-request-id"], asked)


def test_a_contract_is_nobody_elses(stack: Stack, sold: Sold) -> None:
    with OpenAI(base_url=f"{stack.gateway.url}/v1", api_key=stack.key, max_retries=0, timeout=60) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model=MODEL, messages=SEA, max_tokens=2, service_tier="priority")
        assert refused.value.code == "no_contract"
        answer = client.chat.completions.create(model=MODEL, messages=SEA, max_tokens=2, service_tier="auto")
        assert answer.service_tier == "default"


def test_the_minute_of_a_contract_is_shown_to_its_tenant_alone(stack: Stack, sold: Sold) -> None:
    with RawCaller(stack, CHAT, body_of(CHAT, tokens=8), sold.key) as caller:
        caller.read_until(DONE)

    def minutes(key: str) -> list[dict[str, Any]]:
        with stack.gateway.client(key) as client:
            found: list[dict[str, Any]] = client.get("/v1/capacity").json()["data"]
        return found

    wait_until(lambda: any(float(minute["used"]) > 0 for minute in minutes(sold.key)), "minute with use", 30)
    for minute in minutes(sold.key):
        assert minute["contract"] == sold.contract
        assert (minute["refused"], float(minute["shortfall"])) == (0, 0)
    assert minutes(stack.key) == []

    def in_economics() -> list[float]:
        """Units used, by the evidence, by its sums of hours, and by requests: a unit-hour is 3,600 units."""
        report = json.loads(stack.taas("economics", "--by", "contract", "--from", "2h", "--json"))
        (line,) = (each for each in report["lines"] if each["contract"] == sold.contract)
        hours = line["commitment"]["used_commitment"], line["unit_hours"]["used"]
        by_minute = sum(float(minute["used"]) for minute in minutes(sold.key))
        return [by_minute, *(float(each) * 3600 for each in hours)]

    wait_until(
        lambda: in_economics() == [pytest.approx(in_economics()[0], abs=0.01)] * 3,
        "economics that agree with the evidence",
        30,
        instead=in_economics,
    )


class Flex:
    """A flex stream of the tenant without a contract, greedy, in pieces."""

    def __init__(self, stack: Stack, path: str, **fields: Any) -> None:
        usage = {"include_usage": True}
        body = {
            "model": MODEL,
            "stream": True,
            "temperature": 0,
            "max_tokens": TOKENS,
            "stream_options": usage,
        }
        self._path = path
        self._stack = stack
        self.caller = RawCaller(stack, path, {**body, "service_tier": "flex", **fields})

    def __enter__(self) -> "Flex":
        return self

    def __exit__(self, *ended: object) -> None:
        self.caller.leave()

    def events(self) -> list[dict[str, Any]]:
        """To the end."""
        lines = self.caller.read_all().replace(b"\r\n", b"\n").split(b"\n")
        return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]

    def text_of(self, events: list[dict[str, Any]]) -> str:
        said = [choice for event in events for choice in event["choices"]]
        return "".join(
            (choice["delta"].get("content") if self._path == CHAT else choice["text"]) or ""
            for choice in said
        )

    def await_part(self, number: int) -> None:
        """Until it goes on as that, or has ended."""
        first = self.caller.request_id
        wait_until(
            lambda: (f"{first}-{number}" in self._stack.open_ids()) or first not in self._stack.open_ids(),
            "next part",
        )

    def preempt(self) -> None:
        """As the allocator has it when an owner wants its place; there is room, so it goes on at once."""
        stack = self._stack
        with stack.redis.pipeline(transaction=True) as both:
            # At once: a round of the allocator in between would write that nobody need go.
            both.hset(redis_keys.room(stack.cell), f"g:{INSTANCE}", 1)
            both.execute_command(*grant_call(stack.cell))  # type: ignore[no-untyped-call]
            both.execute()


def assert_one_stream_and_one_bill(stack: Stack, events: list[dict[str, Any]], request_id: str) -> None:
    """However many parts it took."""
    assert len({event["id"] for event in events}) == 1
    assert [event for event in events if not event["choices"]] == events[-1:]
    assert (
        sum(choice.get("finish_reason") is not None for event in events for choice in event["choices"]) == 1
    )
    roles = [event for event in events[:-1] if event["choices"][0].get("delta", {}).get("role")]
    assert len(roles) in {0, 1}
    usage, receipt = events[-1]["usage"], stack.receipt(request_id)
    assert (receipt["ending"], receipt["class"]) == ("complete", "flex")
    assert receipt["billed"]["prompt"] == usage["prompt_tokens"]
    assert receipt["billed"]["output"] == receipt["delivered"]["output"] == usage["completion_tokens"]
    absorbed = receipt["absorbed"]["reasons"]
    assert absorbed.keys() == {"continued"}
    assert absorbed["continued"]["prompt"] > usage["prompt_tokens"]
    assert absorbed["continued"]["output"] == receipt["produced"]["output"] - usage["completion_tokens"]


SEAMS: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat": (CHAT, {"messages": COUNTING}, "length"),
    "completions": (COMPLETIONS, {"prompt": COLOURS}, "length"),
    # Three tokens a character, of which two have no text.
    "characters of several tokens": (COMPLETIONS, {"prompt": WAVES}, "length"),
    # So long that it is held back, and it begins again and again.
    "stop string that never comes": (COMPLETIONS, {"prompt": COLOURS, "stop": "blue, red, green, violet"},
    "length"),
    "stop string that comes": (COMPLETIONS, {"prompt": NUMBERS, "stop": ["22, 23"]}, "stop"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "finish"), SEAMS.values(), ids=SEAMS)
def test_a_preempted_stream_says_what_it_would_have_said(
    stack: Stack, sold: Sold, path: str, fields: dict[str, Any], finish: str
) -> None:
    with Flex(stack, path, **fields) as flex:
        undisturbed = flex.events()
        expected = flex.text_of(undisturbed)
    for _ in range(5):  # on a machine so fast that it has said all before it is told, again
        with Flex(stack, path, **fields) as flex:
            for times in (1, 2):
                flex.caller.read_until(b'"finish_reason":null', 14 * times)
                flex.preempt()
                flex.await_part(times + 1)
            events = flex.events()
        assert flex.text_of(events) == expected
        assert events[-1]["usage"]["completion_tokens"] == undisturbed[-1]["usage"]["completion_tokens"]
        assert [choice["finish_reason"] for event in events for choice in event["choices"]][-1] == finish
        if "parts" in stack.receipt(flex.caller.request_id):
            assert_one_stream_and_one_bill(stack, events, flex.caller.request_id)
            return
    raise AssertionError("it was never preempted")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_stream_that_is_preempted_during_prefill_is_answered_all_the_same(
    stack: Stack, sold: Sold, path: str
) -> None:
    """It is stopped before its first token, or after it on a fast machine: never an empty answer, nor a
    prompt that nobody pays for.
    """
    prompt = "The sea is wide and deep. " * 200
    fields = {"messages": [{"role": "user", "content": prompt}]} if path == CHAT else {"prompt": prompt}
    with Flex(stack, path, **fields, max_tokens=12) as flex:
        stack.await_open(1)
        flex.preempt()
        events = flex.events()
    usage, receipt = events[-1]["usage"], stack.receipt(flex.caller.request_id)
    assert [choice["finish_reason"] for event in events for choice in event["choices"]][-1] == "length"
    assert usage["completion_tokens"] == receipt["billed"]["output"] == 12
    assert usage["prompt_tokens"] == receipt["billed"]["prompt"] > 1000


def test_an_owner_that_comes_back_has_its_place_and_flex_waits_and_goes_on(stack: Stack, sold: Sold) -> None:
    """Nothing is set by hand: the allocator sees the holder, flex is preempted, waits while the holder runs,
    and goes on.
    """
    waiting = redis_keys.waiting_tenants(stack.cell, "f")
    with Flex(stack, COMPLETIONS, prompt=COLOURS, max_tokens=LONG, ignore_eos=True) as flex:
        flex.caller.read_until(TOKEN[COMPLETIONS], 3)
        with RawCaller(stack, CHAT, body_of(CHAT, tokens=LONG), sold.key) as owner:
            wait_until(lambda: stack.redis.zcard(waiting) == 1, "flex that waits", 30)
            owner.read_until(TOKEN[CHAT], 3)
            assert b"x-taas-class: reserved" in owner.seen
            assert flex.caller.read_for(0.2) == "left"  # what it was given before it stopped
        before = flex.caller.seen.count(TOKEN[COMPLETIONS])
        wait_until(lambda: stack.redis.zcard(waiting) == 0, "flex that goes on", 60)
        flex.caller.read_until(TOKEN[COMPLETIONS], before + 20)
    receipt = stack.receipt(flex.caller.request_id)
    assert (receipt["ending"], receipt["class"]) == ("client_disconnect", "flex")
    assert receipt["waited_ms"] > 0
    assert len(receipt["parts"]) >= 2
    assert receipt["absorbed"]["reasons"].keys() == {"continued"}
    assert receipt["billed"]["output"] >= receipt["delivered"]["output"] >= 20
    assert stack.receipt(owner.request_id, sold.key)["ending"] == "client_disconnect"


@pytest.mark.parametrize(
    "fields", [{"logprobs": 0}, {"presence_penalty": 0.5}], ids=["log probabilities", "penalties"]
)
def test_flex_that_cannot_be_resumed_ends_with_one_error_and_is_not_billed(
    stack: Stack, sold: Sold, fields: dict[str, Any]
) -> None:
    with Flex(stack, COMPLETIONS, prompt=COLOURS, **fields, max_tokens=LONG, ignore_eos=True) as flex:
        flex.caller.read_until(TOKEN[COMPLETIONS], 3)
        flex.preempt()
        events = flex.caller.read_all()
    assert events.count(b'"error"') == 1
    assert b'"code":"preempted"' in events
    assert DONE not in events
    receipt = stack.receipt(flex.caller.request_id)
    assert (receipt["ending"], receipt["billed"]["prompt"], receipt["billed"]["output"]) == (
        "preempted",
        0,
        0,
    )
    assert receipt["absorbed"]["output"] == receipt["produced"]["output"] >= 3


def test_nothing_of_all_this_is_unaccounted_for(stack: Stack, sold: Sold) -> None:
    stack.assert_conserved()
