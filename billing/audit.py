"""The audit: does every token that the engines counted stand on a bill, among the absorbed, or in an open request?

Owns gathering the figures in an order that cannot invent a residual, and the report. `balance` computes, `reconcile` absorbs what
can be explained, `ledger_check` reads the ledger back. What it finds are values; it raises only where it cannot look.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
from sqlalchemy import Connection, Engine, select

from billing.balance import EpochBalance, Metered, balance_epoch
from billing.engine_counters import CounterPoller, EngineRun, Poll, read_runs
from billing.engine_instances import NO_TOKENS, CounterPair
from billing.engine_reading import Counters, NoCounters, Unreachable
from billing.findings import Finding, FindingKind, pair_json
from billing.ledger_check import check_ledger, set_aside
from billing.open_requests import OpenRequests, read_open
from billing.reconcile import Evidence, Reconciliation, read_evidence, reconcile
from billing.schema.ledger import usage_total
from billing.usage_stream import UsageStream, read_cells

_DRAIN_POLL_S: Final = 0.05
# Between two looks that must agree before a residual is believed: many steps of any engine.
_SETTLE_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class InstanceAudit:
    """One instance over all its epochs."""

    instance: str
    produced: CounterPair
    metered: Metered
    residual: CounterPair
    has_counters: bool

    def to_json(self) -> dict[str, Any]:
        """The names of the outside."""
        return {
            "instance": self.instance,
            "produced": pair_json(self.produced),
            "billed": pair_json(self.metered.billed),
            "absorbed": pair_json(self.metered.absorbed),
            "open": pair_json(self.metered.open),
            "residual": pair_json(self.residual),
            "counters": self.has_counters,
        }


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found out."""

    instances: tuple[InstanceAudit, ...]
    findings: tuple[Finding, ...]

    @property
    def residual_tokens(self) -> int:
        """Σ |residual| over all instances and both kinds."""
        return sum(abs(each.residual.prompt) + abs(each.residual.generation) for each in self.instances)

    def to_json(self) -> dict[str, Any]:
        """As `taas audit --json` prints it."""
        return {
            "instances": [each.to_json() for each in self.instances],
            "residual_tokens": self.residual_tokens,
            "findings": [finding.to_json() for finding in self.findings],
        }


@dataclass(frozen=True, slots=True)
class _Look:
    """All figures of one moment. `idle`: epochs for which nothing is under way anywhere."""

    balances: tuple[EpochBalance, ...]
    evidence: tuple[Evidence, ...]
    idle: frozenset[tuple[str, str]]
    poll: Poll
    open: OpenRequests
    drained: bool


class Auditor:
    """Audits one installation. The client must not decode responses."""

    def __init__(self, engine: Engine, client: redis.Redis, poller: CounterPoller) -> None:
        self._engine = engine
        self._client = client
        self._poller = poller
        self._pause = threading.Event()

    def audit(self, *, wait_ms: int = 5_000, check_facts: bool = True) -> AuditReport:
        """Waits up to `wait_ms` for usage to arrive and figures to agree. `check_facts` reads the whole ledger back."""
        deadline = time.monotonic() + wait_ms / 1000
        reconciled: list[Reconciliation] = []
        look = self._look(deadline)
        while look.evidence or any(balance.residual != NO_TOKENS for balance in look.balances):
            if time.monotonic() + _SETTLE_S > deadline:
                break
            self._pause.wait(_SETTLE_S)
            before, look = look, self._look(deadline)
            if before.balances == look.balances and before.evidence == look.evidence and look.drained:
                made, closed = self._reconcile(look, before.idle & look.idle)
                reconciled += made
                if not closed:
                    break  # Two looks agree and nothing explains what is left.
                look = self._look(deadline)
        return self._report(look, reconciled, check_facts=check_facts)

    def _look(self, deadline: float) -> _Look:
        # The order matters. First the engines: what they counted was reserved before. Then the open requests, then the streams:
        # a request that is not open by then is in a stream, and if that is empty, in SQL, which is read last.
        poll = self._poller.poll_once()
        while True:
            opened = read_open(self._client)
            drained = self._drained()
            if drained or time.monotonic() > deadline:
                break
            self._pause.wait(_DRAIN_POLL_S)
        with self._snapshot() as connection:
            runs = read_runs(connection)
            totals = connection.execute(select(usage_total)).mappings().all()
            evidence = tuple(read_evidence(connection))
        metered: dict[tuple[str, str], Metered] = {}
        for row in totals:
            metered[row["instance"], row["epoch"]] = Metered(
                CounterPair(row["billed_prompt"], row["billed_output"]),
                CounterPair(row["absorbed_prompt"], row["absorbed_output"]),
            )
        for engine, tokens in opened.tokens.items():
            known = metered.get(engine, Metered())
            metered[engine] = Metered(known.billed, known.absorbed, tokens)
        balances = _balances(runs, metered, poll)
        return _Look(balances, evidence, _idle(balances, poll, opened), poll, opened, drained)

    def _snapshot(self) -> Connection:
        return self._engine.connect().execution_options(isolation_level="REPEATABLE READ")

    def _drained(self) -> bool:
        return all(UsageStream(self._client, cell, "audit").lag().entries == 0 for cell in read_cells(self._client))

    def _reconcile(self, look: _Look, idle: frozenset[tuple[str, str]]) -> tuple[list[Reconciliation], bool]:
        made: list[Reconciliation] = []
        closed = False
        for balance in look.balances:
            engine = balance.instance, balance.epoch
            evidence = [each for each in look.evidence if (each.instance, each.epoch) == engine]
            if not evidence or engine not in idle:
                continue
            with self._engine.begin() as connection:
                reconciliation = reconcile(connection, balance, evidence)
            closed = closed or reconciliation is not None
            if reconciliation is not None:
                made.append(reconciliation)
        return made, closed

    def _report(self, look: _Look, reconciled: Sequence[Reconciliation], *, check_facts: bool) -> AuditReport:
        findings = [*_reconciled(reconciled), *_engine_findings(look), *_balance_findings(look)]
        if not look.drained:
            findings.append(
                Finding(FindingKind.NOT_DRAINED, "usage is still on its way to SQL: the figures are not final")
            )
        with self._snapshot() as connection:
            findings += set_aside(connection)
            if check_facts:
                findings += check_ledger(connection)
        return AuditReport(_instances(look.balances), tuple(findings))


def _balances(
    runs: Sequence[EngineRun], metered: Mapping[tuple[str, str], Metered], poll: Poll
) -> tuple[EpochBalance, ...]:
    by_epoch: dict[tuple[str, str], list[EngineRun]] = defaultdict(list)
    for run in runs:
        by_epoch[run.instance, run.epoch].append(run)
    silent = {
        (each.instance, each.epoch)
        for each in poll.registry.instances
        if isinstance(poll.readings.get(each.instance), Unreachable)
    }
    return tuple(
        balance_epoch(*engine, by_epoch.get(engine, []), metered.get(engine, Metered()), unreachable=engine in silent)
        for engine in sorted({*by_epoch, *metered})
    )


def _idle(balances: Sequence[EpochBalance], poll: Poll, opened: OpenRequests) -> frozenset[tuple[str, str]]:
    """Epochs that have no open request and whose engine has ended, or answers that it has nothing to do."""
    working = set()
    for each in poll.registry.instances:
        reading = poll.readings.get(each.instance)
        if each.alive and not (isinstance(reading, Counters) and not reading.busy):
            working.add((each.instance, each.epoch))
    engines = {(balance.instance, balance.epoch) for balance in balances}
    # Whose a reservation is that cannot be read is not known: then nothing is idle.
    return frozenset() if opened.unreadable else frozenset(engines - working - set(opened.requests))


def _instances(balances: Sequence[EpochBalance]) -> tuple[InstanceAudit, ...]:
    by_instance: dict[str, list[EpochBalance]] = defaultdict(list)
    for balance in balances:
        by_instance[balance.instance].append(balance)
    return tuple(
        InstanceAudit(
            instance,
            sum((each.produced for each in epochs), NO_TOKENS),
            Metered(
                sum((each.metered.billed for each in epochs), NO_TOKENS),
                sum((each.metered.absorbed for each in epochs), NO_TOKENS),
                sum((each.metered.open for each in epochs), NO_TOKENS),
            ),
            sum((each.residual for each in epochs), NO_TOKENS),
            any(each.has_counters for each in epochs),
        )
        for instance, epochs in sorted(by_instance.items())
    )


def _reconciled(reconciled: Sequence[Reconciliation]) -> list[Finding]:
    return [
        Finding(
            FindingKind.RECONCILED,
            f"tokens produced after the last that was heard of requests whose gateway or engine died, absorbed as {each.request_id}",
            each.instance, each.epoch, each.tokens, len(each.evidence), each.evidence[:20],
        )
        for each in reconciled
    ]  # fmt: skip


def _engine_findings(look: _Look) -> list[Finding]:
    found = [
        Finding(FindingKind.UNREADABLE, f"the entry of instance {name} cannot be read", name)
        for name in look.poll.registry.unreadable
    ]
    for each in look.poll.registry.instances:
        reading = look.poll.readings.get(each.instance)
        if isinstance(reading, Unreachable):
            message = f"the engine does not tell its counters: {reading.reason}"
            found.append(Finding(FindingKind.UNREACHABLE, message, each.instance, each.epoch))
        elif isinstance(reading, NoCounters):
            message = "the engine has no counters: its usage cannot be audited"
            found.append(Finding(FindingKind.NO_COUNTERS, message, each.instance, each.epoch))
    if look.open.unreadable:
        message = "open reservations that cannot be read"
        found.append(
            Finding(FindingKind.UNREADABLE, message, count=len(look.open.unreadable), ids=look.open.unreadable[:20])
        )
    return found


def _balance_findings(look: _Look) -> list[Finding]:
    found: list[Finding] = []
    for balance in look.balances:
        if balance.lost != NO_TOKENS:
            message = (
                "the engine ended before its last counters were read; what was metered beyond them counts as produced"
            )
            found.append(Finding(FindingKind.COUNTER_LOST, message, balance.instance, balance.epoch, balance.lost))
        if balance.residual != NO_TOKENS:
            message = "produced is not billed + absorbed + open"
            found.append(Finding(FindingKind.RESIDUAL, message, balance.instance, balance.epoch, balance.residual))
    return found
