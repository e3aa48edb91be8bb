"""The audit: is every token that the engines counted on a bill, absorbed, or part of an open request?

It is exact while requests come and go. This module owns how often the audit reads, and what it absorbs at
idle engines. `reading` reads, `balance` computes, `request_check` and `reconcile` absorb what can be
explained, `report` makes the report. Findings are values; it raises only if it cannot read.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import Final

import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection, Engine

from billing.accounts import audit_log
from billing.audit import balance_rows, finding_rows, provider_counts
from billing.audit.clocks import check_clocks, difference_ms
from billing.audit.engine_counters import Absorbed, CounterPoller
from billing.audit.reading import AuditReading, read_all, snapshot
from billing.audit.reconcile import Reconciliation, reconcile
from billing.audit.report import (
    AuditReport,
    absorbed_findings,
    balance_findings,
    by_instance,
    difference_findings,
    engine_findings,
    reconciled_findings,
)
from billing.findings import Finding, FindingKind
from billing.invoices.check import check_invoices
from billing.ledger.chain_check import check_chains
from billing.ledger.check import check_ledger, set_aside
from billing.ledger.checkpoints import AUDIT_LOG, check_checkpoints, newest
from billing.usage.busy_cells import BusyCells
from billing.wire import redis_clock
from billing.wire.tokens import NO_TOKENS

# Of the ledger and the audit log, what a periodic audit checks: it goes on where the one before it stopped.
_LINKS_A_ROUND: Final = 20_000
# Time between two readings that must agree before a residual is believed: many steps of any engine.
_SETTLE_S: Final = 0.25


class Facts(StrEnum):
    """What an audit reads back of what was recorded.

    `NEW`: what was chained since the last audit of this process, from the last signed checkpoints on.
    `SINCE_CHECKPOINT`: what was chained since these. Both prove that these entries, their postings and prices
    and the entries of the audit log are what was chained, and follow the signed links. What was there at the
    checkpoint can have been changed since then without being found; so can sums, and invoices.
    `ALL`: everything, from the beginning.
    """

    NEW = "new"
    SINCE_CHECKPOINT = "since_checkpoint"
    ALL = "all"


class Auditor:
    """Audits one installation. The client must not decode responses."""

    def __init__(
        self,
        engine: Engine,
        client: redis.Redis,
        poller: CounterPoller,
        busy: BusyCells | None = None,
        checking_key: Callable[[], Ed25519PublicKey | None] = lambda: None,
    ) -> None:
        """`checking_key`: of the key that signs usage checkpoints, its public half."""
        self._checking_key = checking_key
        self._busy = busy or BusyCells(client)
        self._engine = engine
        self._client = client
        self._poller = poller
        self._pause = threading.Event()
        # Of each chain, the position and hash to which it was checked.
        self._checked: dict[str, tuple[int, str]] | None = None

    def audit(self, *, wait_ms: int = 5_000, facts: Facts = Facts.ALL) -> AuditReport:
        """Audit now. While something seems unexplained it reads again, for up to `wait_ms`: a residual is
        real if two readings agree on it.
        """
        deadline = time.monotonic() + wait_ms / 1000
        reconciled: list[Reconciliation] = []
        reading = self._read()
        absorbed = [*reading.poll.absorbed]
        if absorbed:  # read again, with what was absorbed in the ledger
            reading = self._read()
            absorbed += reading.poll.absorbed
        while reading.evidence or any(balance.residual != NO_TOKENS for balance in reading.balances):
            if time.monotonic() + _SETTLE_S > deadline:
                break
            self._pause.wait(_SETTLE_S)
            before, reading = reading, self._read()
            absorbed += reading.poll.absorbed
            if before.agrees_with(reading) and reading.complete:
                made = self._reconcile(reading, before.idle & reading.idle)
                if made is None:
                    break  # two readings agree and nothing explains the rest
                reconciled += made
                reading = self._read()
        return self._report(reading, reconciled, absorbed, facts)

    def _read(self) -> AuditReading:
        return read_all(self._engine, self._client, self._poller, self._busy)

    def _reconcile(
        self, reading: AuditReading, idle: frozenset[tuple[str, str]]
    ) -> list[Reconciliation] | None:
        """At engines that do not count their requests, absorb what cut-off requests explain. None if they
        explain nothing.
        """
        made: list[Reconciliation] = []
        closed = False
        counting = {each.instance for each in reading.poll.registry.instances if each.counts}
        for balance in reading.balances:
            engine = balance.instance, balance.epoch
            evidence = [each for each in reading.evidence if (each.instance, each.epoch) == engine]
            if not evidence or engine not in idle or balance.instance in counting:
                continue
            with self._engine.begin() as connection:
                reconciliation = reconcile(connection, balance, evidence)
            closed = closed or reconciliation is not None
            if reconciliation is not None:
                made.append(reconciliation)
        return made if closed else None

    def _report(
        self,
        reading: AuditReading,
        reconciled: list[Reconciliation],
        absorbed: list[Absorbed],
        facts: Facts,
    ) -> AuditReport:
        findings = [
            *reconciled_findings(reconciled), *absorbed_findings(absorbed), *engine_findings(reading),
            *balance_findings(reading),
        ]  # fmt: skip
        if not reading.complete:
            message = "more usage is on its way to SQL than can be read here: the figures are not final"
            findings.append(Finding(kind=FindingKind.NOT_DRAINED, message=message))
        with snapshot(self._engine) as connection:
            findings += difference_findings(connection)
            findings += set_aside(connection)
            findings += check_clocks(difference_ms(connection, self._client))
            if facts is Facts.ALL:
                findings += check_ledger(connection) + check_checkpoints(connection, self._checking_key())
                findings += check_invoices(connection)
                findings += audit_log.check(connection)
                findings += provider_counts.check(connection)
            else:
                findings += self._check_newest(connection, facts)
            head = None if facts is Facts.NEW else audit_log.head(connection)
        with self._engine.begin() as connection:
            finding_rows.hold_off(connection)
            balance_rows.keep(connection, reading.poll.registry.now_ms, reading.balances, reading.states)
            findings = [_dated(connection, each) for each in findings]
            finding_rows.keep(connection, findings, facts=facts is Facts.ALL)
            rows = finding_rows.count_by_state(connection)
        oldest_ms = min((each.started_ms for each in reading.open.by_id.values()), default=None)
        age_ms = 0 if oldest_ms is None else max(0, redis_clock.now_ms(self._client) - oldest_ms)
        return AuditReport(
            instances=by_instance(reading.balances), findings=tuple(findings), facts=facts.value, head=head,
            rows=rows, oldest_open_ms=age_ms, read_ms=_read_ms(reading),
        )  # fmt: skip

    def _check_newest(self, connection: Connection, facts: Facts) -> list[Finding]:
        since = self._checked if facts is Facts.NEW else None
        findings: list[Finding] = []
        if since is None:
            # A key that cannot be read must not keep engines from being compared.
            key = None if facts is Facts.NEW else self._checking_key()
            findings = check_checkpoints(connection, key, only_newest=True)
            signed = newest(connection)
            since = {chain: (each.position, each.hash) for chain, each in signed.items()}
        most = _LINKS_A_ROUND if facts is Facts.NEW else None
        report = check_chains(connection, since, most=most)
        before = audit_log.Head(*since[AUDIT_LOG]) if AUDIT_LOG in since else None
        findings += [*report.findings(), *audit_log.check(connection, before)]
        if facts is Facts.NEW:
            head = audit_log.head(connection)
            self._checked = {**report.upto, AUDIT_LOG: (head.entry, head.hash)}
        return findings


def _dated(connection: Connection, finding: Finding) -> Finding:
    """A residual with the minute since which it is there."""
    if finding.kind is not FindingKind.RESIDUAL or finding.instance is None:
        return finding
    since_ms = balance_rows.residual_since_ms(connection, finding.instance, finding.epoch or "")
    return replace(finding, since_ms=since_ms)


def _read_ms(reading: AuditReading) -> dict[str, int | None]:
    """When the counters of each instance that is there were read; None: it did not answer."""
    return {
        instance: reading.poll.registry.now_ms if state.counters == "read" else None
        for (instance, _), state in reading.states.items()
        if state.counters != "ended"
    }
