"""The audit: is every token that the engines counted on a bill, absorbed, or part of an open request?

It is exact while requests come and go. This module owns how often the audit reads, and what it absorbs at
idle engines. `reading` reads, `balance` computes, `request_check` and `reconcile` absorb what can be
explained, `report` makes the report. Findings are values; it raises only if it cannot read.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
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
from billing.ledger.check import check_ledger, set_aside
from billing.ledger.checkpoints import check_checkpoints
from billing.usage.busy_cells import BusyCells
from billing.wire import redis_clock
from billing.wire.tokens import NO_TOKENS

# Time between two readings that must agree before a residual is believed: many steps of any engine.
_SETTLE_S: Final = 0.25


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

    def audit(self, *, wait_ms: int = 5_000, check_facts: bool = True) -> AuditReport:
        """Audit now. While something seems unexplained it reads again, for up to `wait_ms`: a residual is
        real if two readings agree on it. `check_facts` reads the whole ledger and the audit log back.
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
        return self._report(reading, reconciled, absorbed, check_facts=check_facts)

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
        *,
        check_facts: bool,
    ) -> AuditReport:
        findings = [
            *reconciled_findings(reconciled), *absorbed_findings(absorbed), *engine_findings(reading),
            *balance_findings(reading),
        ]  # fmt: skip
        if not reading.complete:
            message = "more usage is on its way to SQL than can be read here: the figures are not final"
            findings.append(Finding(kind=FindingKind.NOT_DRAINED, message=message))
        head = None
        with snapshot(self._engine) as connection:
            findings += difference_findings(connection)
            findings += set_aside(connection)
            findings += check_clocks(difference_ms(connection, self._client))
            if check_facts:
                findings += check_ledger(connection) + check_checkpoints(connection, self._checking_key())
                findings += check_invoices(connection)
                findings += audit_log.check(connection)
                findings += provider_counts.check(connection)
                head = audit_log.head(connection)
        with self._engine.begin() as connection:
            finding_rows.hold_off(connection)
            balance_rows.keep(connection, reading.poll.registry.now_ms, reading.balances, reading.states)
            findings = [_dated(connection, each) for each in findings]
            finding_rows.keep(connection, findings, facts=check_facts)
            rows = finding_rows.count_by_state(connection)
        oldest_ms = min((each.started_ms for each in reading.open.by_id.values()), default=None)
        age_ms = 0 if oldest_ms is None else max(0, redis_clock.now_ms(self._client) - oldest_ms)
        return AuditReport(
            instances=by_instance(reading.balances), findings=tuple(findings), head=head, rows=rows,
            oldest_open_ms=age_ms, read_ms=_read_ms(reading),
        )  # fmt: skip


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
