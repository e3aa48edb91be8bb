"""What the product needs of a vLLM metrics page: load and token counters. The only module that knows their
names. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final

from billing.wire.instance_entry import EngineLoad
from billing.wire.tokens import CounterPair

# The range of the ledger's columns; no engine counts that far.
_COUNT_MAX: Final = 2**63 - 1
_PROMPT: Final = "vllm:prompt_tokens_total"
_GENERATION: Final = "vllm:generation_tokens_total"
_RUNNING: Final = "vllm:num_requests_running"
_WAITING: Final = "vllm:num_requests_waiting"
_KV_USAGE: Final = "vllm:kv_cache_usage_perc"
_STARTED: Final = "process_start_time_seconds"
_SERIES: Final = (_PROMPT, _GENERATION, _RUNNING, _WAITING, _KV_USAGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmPage:
    """Sums over the engines behind one server. `counters` None: it counts no tokens. `missing`: names of
    series that are absent or unreadable, which are 0 here. `started`: changes with the process, if the page
    has it.
    """

    counters: CounterPair | None
    load: EngineLoad
    started: str | None
    missing: tuple[str, ...]


def read_page(text: str) -> VllmPage:
    """Raises ValueError, which names the series, where a count is none."""
    found: dict[str, list[Decimal]] = {}
    started: str | None = None
    for line in text.splitlines():
        if not line.startswith(("vllm:", _STARTED)):
            continue
        name = line[: min(at for at in (line.find("{"), line.find(" "), len(line)) if at >= 0)]
        if name not in _SERIES and name != _STARTED:
            continue
        value = line[line.rfind("}") + 1 :].split() if "{" in line else line.split()[1:]
        if not value:
            raise ValueError(f"{name} without a value")
        if name == _STARTED:
            started = value[0]
        elif (number := _number(name, value[0])) is not None:
            found.setdefault(name, []).append(number)
    totals = {name: _total(name, found.get(name, ())) for name in (_PROMPT, _GENERATION, _RUNNING, _WAITING)}
    return VllmPage(
        counters=CounterPair(totals[_PROMPT], totals[_GENERATION])
        if {_PROMPT, _GENERATION} <= found.keys()
        else None,
        load=EngineLoad(
            running=totals[_RUNNING],
            waiting=totals[_WAITING],
            kv_usage=max((float(value) for value in found.get(_KV_USAGE, ()) if value > 0), default=0.0),
        ),
        started=started,
        missing=tuple(name for name in _SERIES if name not in found),
    )


def _number(name: str, text: str) -> Decimal | None:
    """None for a gauge without a value, so that the counters can still be read."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() and name == _KV_USAGE:
        return None
    if name != _KV_USAGE and not (number.is_finite() and 0 <= number <= _COUNT_MAX):
        raise ValueError(f"{name} is {text[:40]!r}")
    return number


def _total(name: str, values: Sequence[Decimal]) -> int:
    total = sum(values, Decimal(0))
    if total > _COUNT_MAX or total != int(total):
        raise ValueError(f"{name} is {total}")
    return int(total)
