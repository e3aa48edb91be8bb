"""The audit: does every token that the engines counted stand on a bill, among the absorbed, or in an open
request?

It holds while requests come and go. Owns how often it looks, and what is absorbed where nothing is under way.
`audit_look` reads, `balance` computes, `request_check` and `reconcile` absorb what can be explained,
`audit_report` tells. What it finds are values; it raises only where it cannot look.
"""

import threading
import time
from typing import Final

import redis
from sqlalchemy import Engine

from billing.audit.clocks import check_clocks, difference_ms
from billing.audit.engine_counters import Absorbed, CounterPoller
from billing.audit.look import Look, snapshot, take_look
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
from billing.ledger.check import check_ledger, set_aside
from billing.usage.busy_cells import BusyCells
from billing.wire.tokens import NO_TOKENS

# Between two looks that must agree before a residual is believed: many steps of any engine.
_SETTLE_S: Final = 0.25


class Auditor:
    """Audits one installation. The client must not decode responses."""

    def __init__(
        self, engine: Engine, client: redis.Redis, poller: CounterPoller, busy: BusyCells | None = None
    ) -> None:
        self._busy = busy or BusyCells(client)
        self._engine = engine
        self._client = client
        self._poller = poller
        self._pause = threading.Event()

    def audit(self, *, wait_ms: int = 5_000, check_facts: bool = True) -> AuditReport:
        """Looks again, for up to `wait_ms`, where something seems to be unexplained: what two looks agree on
        is. `check_facts` reads the whole ledger back.
        """
        deadline = time.monotonic() + wait_ms / 1000
        reconciled: list[Reconciliation] = []
        look = self._look()
        absorbed = [*look.poll.absorbed]
        if absorbed:  # with it on the books
            look = self._look()
            absorbed += look.poll.absorbed
        while look.evidence or any(balance.residual != NO_TOKENS for balance in look.balances):
            if time.monotonic() + _SETTLE_S > deadline:
                break
            self._pause.wait(_SETTLE_S)
            before, look = look, self._look()
            absorbed += look.poll.absorbed
            if before.agrees_with(look) and look.complete:
                made = self._reconcile(look, before.idle & look.idle)
                if made is None:
                    break  # Two looks agree and nothing explains what is left.
                reconciled += made
                look = self._look()
        return self._report(look, reconciled, absorbed, check_facts=check_facts)

    def _look(self) -> Look:
        return take_look(self._engine, self._client, self._poller, self._busy)

    def _reconcile(self, look: Look, idle: frozenset[tuple[str, str]]) -> list[Reconciliation] | None:
        """Absorb, at engines that do not count their requests, what cut-off requests explain; None where
        nothing does.
        """
        made: list[Reconciliation] = []
        closed = False
        counting = {each.instance for each in look.poll.registry.instances if each.counts}
        for balance in look.balances:
            engine = balance.instance, balance.epoch
            evidence = [each for each in look.evidence if (each.instance, each.epoch) == engine]
            if not evidence or engine not in idle or balance.instance in counting:
                continue
            with self._engine.begin() as connection:
                reconciliation = reconcile(connection, balance, evidence)
            closed = closed or reconciliation is not None
            if reconciliation is not None:
                made.append(reconciliation)
        return made if closed else None

    def _report(
        self, look: Look, reconciled: list[Reconciliation], absorbed: list[Absorbed], *, check_facts: bool
    ) -> AuditReport:
        findings = [
            *reconciled_findings(reconciled), *absorbed_findings(absorbed), *engine_findings(look),
            *balance_findings(look),
        ]  # fmt: skip
        if not look.complete:
            message = "more usage is on its way to SQL than can be looked through: the figures are not final"
            findings.append(Finding(kind=FindingKind.NOT_DRAINED, message=message))
        with snapshot(self._engine) as connection:
            findings += difference_findings(connection)
            findings += set_aside(connection)
            findings += check_clocks(difference_ms(connection, self._client))
            if check_facts:
                findings += check_ledger(connection)
        return AuditReport(by_instance(look.balances), tuple(findings))
