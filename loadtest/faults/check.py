"""Holds every request that a caller or an engine knows of against the ledger, one by one; and the
product's own audit. Names each discrepancy.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from loadtest.faults.callers import Answers
from loadtest.faults.parts import Engine, Installation

_EVENTS: Final = """
SELECT e.request_id, e.ending, e.produced_prompt, e.produced_output, e.billed_prompt + e.billed_output,
  e.absorbed_reasons,
  e.anomaly, (SELECT count(*) FROM ledger_transaction t WHERE t.request_id = e.request_id),
  e.usage_source, e.instance, e.epoch
FROM usage_event e WHERE e.kind = 'request'
"""
_NAMED: Final = (
    "SELECT evidence, absorbed_prompt, absorbed_output FROM usage_event WHERE kind = 'reconciliation'"
)


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """What is wrong with which request; `what` says it in a word that can be counted."""

    what: str
    request_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Checked:
    """All that was held against each other, and what did not agree. `cut`: requests that ran when their
    engine died. What it made of them in its last moments reached nobody, so that their events may say less
    than it knew, and never more; and usage that only the engine could have told stays in doubt, off the bill.
    """

    requests: int
    events: int
    cut: int
    found: list[Discrepancy]


def check(installation: Installation, answers: Answers) -> Checked:
    """At rest. Raises psycopg.Error, httpx.HTTPError."""
    every = {row[0]: row for row in installation.sql(_EVENTS)}
    sellers = {provider.name for provider in installation.providers}
    events = {name: row for name, row in every.items() if row[9] not in sellers}
    named: set[str] = set()
    for evidence, _, _ in installation.sql(_NAMED):
        named |= set((evidence or {}).get("requests", ()))
    truth: dict[str, tuple[int, int]] = {}
    cut: set[str] = set()
    for engine in installation.engines:
        engine.read_truth()
        cut |= {_name(request_id) for request_id in engine.cut}
        for request_id, (prompt, output) in engine.truth().items():
            before = truth.get(_name(request_id), (0, 0))
            truth[_name(request_id)] = before[0] + prompt, before[1] + output
    found: list[Discrepancy] = []
    for request_id, (prompt, output) in truth.items():
        found += _against_engine(
            request_id, (prompt, output), events.get(request_id), named, request_id in cut
        )
    for request_id, status in answers.status.items():
        whole = request_id in answers.whole
        found += _against_caller(
            request_id, status, whole, every.get(request_id), absorbed=request_id in named, sellers=sellers
        )
    found += [
        Discrepancy("billed_twice", row[0], f"{row[7]} ledger transactions")
        for row in every.values()
        if row[7] > 1
    ]
    found += [
        Discrepancy("unknown_to_engines", row[0], f"{row[1]} of {row[2]}+{row[3]} tokens")
        for row in events.values()
        if (row[2] or row[3]) and row[0] not in truth
    ]
    for each in of_audit(installation.audit()):
        event = every.get(each.request_id)
        if event is None:
            found.append(each)
        elif not _could_not_be_told(each, event, cut, sellers):
            found.append(replace(each, detail=f"{each.detail}; {_told(event)}"))
    bought = [row for row in every.values() if row[9] in sellers]
    found += _against_providers(bought, installation.providers)
    return Checked(len(truth.keys() | answers.status.keys()), len(every), len(cut), found)


def _against_providers(bought: list[Any], providers: list[Engine]) -> list[Discrepancy]:
    """A provider knows no request by our id. So what the events say that it told is held against what it made
    of its requests, each of which can explain one event.
    """
    made: Counter[tuple[int, int]] = Counter()
    for provider in providers:
        provider.read_truth()
        made.update((each["prompt"], each["output"]) for each in provider.told.values())
    found = []
    for row in bought:
        told = row[8] == "engine"
        if told and (row[2] or row[3]):
            made[row[2], row[3]] -= 1
            if made[row[2], row[3]] < 0:
                found.append(Discrepancy("provider_made_no_such", row[0], _told(row)))
        elif row[4] and not told:
            found.append(Discrepancy("provider_did_not_say", row[0], f"{row[4]} tokens billed; {_told(row)}"))
    return found


def of_audit(report: Mapping[str, Any]) -> list[Discrepancy]:
    """What the product itself says is wrong."""
    found = [
        Discrepancy(f"audit_{finding['kind']}", name, str(finding))
        for finding in report["findings"]
        if finding["kind"] not in {"reconciled", "counter_lost"}
        for name in finding.get("ids") or [str(finding.get("instance", ""))]
    ]
    if report["residual_tokens"]:
        found.append(Discrepancy("audit_residual", "", f"{report['residual_tokens']} tokens"))
    return found


def _name(request_id: str) -> str:
    """As the ledger has it: a response's id at the engine is the request's own with another beginning."""
    return "req_" + request_id.removeprefix("resp_") if request_id.startswith("resp_") else request_id


def _could_not_be_told(found: Discrepancy, event: Any, cut: set[str], sellers: set[str]) -> bool:
    """Whether the usage is in doubt because its caller left and the engine died before it told it, or a
    provider, of which nobody knows what it was doing then.
    """
    may_be = found.request_id in cut or event[9] in sellers
    return found.what == "audit_quarantined" and may_be and event[6] == "usage_missing"


def _told(event: Any) -> str:
    """What its event says, for whoever looks for the cause."""
    names = ("ending", "source", "produced", "anomaly", "instance", "epoch")
    values = (event[1], event[8], (event[2], event[3]), event[6], event[9], event[10])
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))


def _against_engine(
    request_id: str, counted: tuple[int, int], event: Any, named: set[str], cut: bool
) -> list[Discrepancy]:
    if event is None:
        return [Discrepancy("no_event", request_id, f"the engine counted {counted}")] if any(counted) else []
    produced = (event[2], event[3])
    if produced == counted:
        return []
    short = produced[0] <= counted[0] and produced[1] <= counted[1]
    if short and (cut or request_id in named):
        return []
    what = "tokens_missing" if short else "tokens_too_many"
    return [
        Discrepancy(what, request_id, f"{event[1]}: the engine counted {counted}, the event says {produced}")
    ]


def _against_caller(
    request_id: str, status: int, whole: bool, event: Any, *, absorbed: bool, sellers: set[str]
) -> list[Discrepancy]:
    """`absorbed`: in its name, since nobody could bill it any more. What a provider answered in the last
    moment of a gateway that was killed is known to nobody else.
    """
    if status != 200:
        return []
    if event is None:
        return [Discrepancy("answer_without_event", request_id, "whole" if whole else "begun")]
    unknown = event[1] == "gateway_died" and event[9] in sellers
    if whole and not event[4] and not event[5] and not absorbed and not unknown:
        return [Discrepancy("answer_for_nothing", request_id, _told(event))]
    return []


def table(found: list[Discrepancy]) -> list[str]:
    """So many of each kind, then each by name."""
    counted = Counter(each.what for each in found)
    return [f"  {what:24}{count:>6}" for what, count in counted.most_common()] + [
        f"  {each.what}  {each.request_id}  {each.detail}" for each in found
    ]
