"""What is to go wrong, and for whom: markers in a prompt, or orders left by an admin call.

A marker is `[[fault:NAME=VALUE]]` anywhere in the prompt text; several add up. An order is `{"fault",
"value", "model", "route", "count"}`: it hits the next `count` requests that fit (null = all until reset). An
order `tool_call` waits for a request that offers that tool.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

_MARKER = re.compile(r"\[\[fault:(\w+)(?:=([^\]]*))?\]\]")

GARBAGE_KINDS = (
    "html",
    "not_sse",
    "long_line",
    "gzip",
    "duplicate",
    "out_of_order",
    "bad_chunk",
    "truncated_json",
    "binary",
)
USAGE_LIES = ("missing", "negative", "zero", "huge", "huge_prompt", "backwards", "cached_gt_prompt")
DEATHS = ("reset", "close", "exit")


class UnknownFault(ValueError):
    """No such fault, or a value that it cannot have."""


@dataclass(slots=True, kw_only=True)
class FaultPlan:
    """How one request goes wrong. `die_after_tokens` 0 is before the first token; counts are output tokens
    of the whole request.
    """

    refuse: bool = False
    hang: str | None = None  # "silent": not a byte; "headers": the head of a stream, then nothing
    status: int | None = None
    retry_after: str | None = None  # of that refusal
    late_refusal: bool = False  # of a whole answer: made to its end, then refused
    garbage: str | None = None
    usage: str | None = None
    die_after_tokens: int | None = None
    death: str = "reset"
    end_after_tokens: int | None = None
    stall_after_tokens: int | None = None
    slow_drip_s: float = 0.0
    # Not faults, but scripted in the same way: where the text ends by itself, what it thinks first, which
    # tool it calls.
    stop_after: int | None = None
    reasoning_tokens: int = 0
    tool_call: str | None = None
    tool_arguments: str | None = None  # JSON, said word for word; None: made up, like any text

    @property
    def before_engine(self) -> bool:
        """Whether the request never reaches the scheduler."""
        return self.hang is not None or self.status is not None or self.garbage in _GARBAGE_WITHOUT_TOKENS


_GARBAGE_WITHOUT_TOKENS = ("html", "not_sse", "long_line", "gzip", "bad_chunk", "truncated_json", "binary")
_EVERYTHING = 1 << 62


def apply_fault(plan: FaultPlan, name: str, value: str) -> None:
    """Add one named fault to a plan."""
    count, _, death = value.partition(":")
    try:
        match name:
            case "refuse":
                plan.refuse = True
            case "hang":
                plan.hang = _one_of(value or "silent", ("silent", "headers"))
            case "die_before_first_token":
                plan.die_after_tokens, plan.death = 0, _one_of(value or "reset", DEATHS)
            case "die_after_tokens":
                plan.die_after_tokens, plan.death = int(count), _one_of(death or "reset", DEATHS)
            case "end_without_done":
                plan.end_after_tokens = int(count) if count else _EVERYTHING
            case "stall_after_tokens":
                plan.stall_after_tokens = int(count)
            case "garbage":
                plan.garbage = _one_of(value, GARBAGE_KINDS)
            case "usage":
                plan.usage = _one_of(value, USAGE_LIES)
            case "late_refusal":
                plan.late_refusal = True
            case "status":
                status, _, after = value.partition(":")
                plan.status, plan.retry_after = int(status), after or None
            case "slow_drip":
                plan.slow_drip_s = float(value) / 1000
            case "stop_after":
                plan.stop_after = int(value)
            case "reasoning":
                plan.reasoning_tokens = int(value)
            case "tool_call":
                plan.tool_call, _, arguments = value.partition(":")
                plan.tool_arguments = arguments or None
                json.loads(arguments or "{}")
            case _:
                raise UnknownFault(f"no fault is named {name!r}")
    except ValueError as exc:
        raise UnknownFault(f"{name}={value!r}: {exc}") from exc


def _one_of(value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UnknownFault(f"one of {', '.join(allowed)} is needed")
    return value


@dataclass(slots=True)
class FaultOrder:
    """A fault left by an admin call; `remaining` None = until reset."""

    name: str
    value: str
    model: str | None
    route: str | None
    remaining: int | None

    def fits(self, model: str, route: str, tools: Collection[str] = ()) -> bool:
        """Whether it is meant for such a request; `tools` are the names that the request offers."""
        if self.name == "tool_call" and self.value.partition(":")[0] not in tools:
            return False
        return self.remaining != 0 and self.model in (None, model) and self.route in (None, route)


@dataclass(slots=True)
class FaultBook:
    """The orders in force."""

    orders: list[FaultOrder] = field(default_factory=list)

    def add(self, order: dict[str, Any]) -> None:
        """Take an order from JSON; checked at once, so that a typing error does not become a fault that
        never comes.
        """
        name, value = str(order["fault"]), str(order.get("value") or "")
        apply_fault(FaultPlan(), name, value)
        self.orders.append(
            FaultOrder(name, value, order.get("model"), order.get("route"), order.get("count", 1))
        )

    def clear(self) -> None:
        self.orders.clear()

    def take_refusal(self, route: str) -> bool:
        """Whether this connection is to be closed before its request is read."""
        return any(
            self._use(order)
            for order in self.orders
            if order.name == "refuse" and order.model is None and order.fits("", route)
        )

    def plan(self, model: str, route: str, prompt: str, tools: Collection[str] = ()) -> FaultPlan:
        """What happens to this request: its own markers and the orders that fit; each order is used up by
        one.
        """
        plan = FaultPlan()
        for order in self.orders:
            if order.fits(model, route, tools):
                self._use(order)
                apply_fault(plan, order.name, order.value)
        self.orders = [order for order in self.orders if order.remaining != 0]
        for name, value in _MARKER.findall(prompt):
            apply_fault(plan, name, value)
        return plan

    @staticmethod
    def _use(order: FaultOrder) -> bool:
        if order.remaining is not None:
            order.remaining -= 1
        return True
