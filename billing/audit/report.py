"""The result of an audit as a report: figures by instance, and findings. It owns their texts. It reads
nothing but the stored differences.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from billing.accounts.audit_log import Head
from billing.audit.balance import EpochBalance, Metered
from billing.audit.engine_counters import Absorbed
from billing.audit.reading import AuditReading
from billing.audit.reconcile import Reconciliation
from billing.audit.request_check import CALIBRATION_ID
from billing.findings import Finding, FindingKind, pair_json
from billing.fleet.engine_reading import NoCounters, Unreachable
from billing.schema.ledger import request_difference
from billing.wire.tokens import NO_TOKENS, CounterPair


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """The result of an audit."""

    instances: tuple[InstanceAudit, ...]
    findings: tuple[Finding, ...]
    # What was read back of what was recorded; the last entry of the audit log, if that is told.
    facts: str = "all"
    head: Head | None = None
    # Rows of findings that are there, by kind and state; the age of the oldest open request; when the
    # counters of each instance that is there were read, None where it did not answer.
    rows: Mapping[tuple[str, str], int] = field(default_factory=dict)
    oldest_open_ms: int = 0
    read_ms: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def residual_tokens(self) -> int:
        """Σ |residual| over all instances and both kinds."""
        return sum(abs(each.residual.prompt) + abs(each.residual.generation) for each in self.instances)

    def to_json(self) -> dict[str, Any]:
        """As `taas audit --json` prints it."""
        report = {
            "checked": self.facts,
            "instances": [each.to_json() for each in self.instances],
            "residual_tokens": self.residual_tokens,
            "findings": [finding.to_json() for finding in self.findings],
        }
        return report if self.head is None else report | {"audit_log": asdict(self.head)}


def by_instance(balances: Sequence[EpochBalance]) -> tuple[InstanceAudit, ...]:
    """The epochs of each instance together."""
    epochs_of: dict[str, list[EpochBalance]] = defaultdict(list)
    for balance in balances:
        epochs_of[balance.instance].append(balance)
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
        for instance, epochs in sorted(epochs_of.items())
    )


def reconciled_findings(reconciled: Sequence[Reconciliation]) -> list[Finding]:
    """What was absorbed for engines that do not count their requests."""
    return [
        Finding(
            kind=FindingKind.RECONCILED,
            message="tokens produced after the last that was heard of requests whose gateway or engine "
            f"died, absorbed as {each.request_id}",
            instance=each.instance,
            epoch=each.epoch,
            tokens=each.tokens,
            count=len(each.evidence),
            ids=each.evidence[:20],
        )
        for each in reconciled
    ]


def absorbed_findings(absorbed: Sequence[Absorbed]) -> list[Finding]:
    """What was absorbed request by request."""
    by_epoch: dict[tuple[str, str], list[Absorbed]] = defaultdict(list)
    for each in absorbed:
        if each.request_id.startswith(CALIBRATION_ID):
            continue  # the cost of measuring needs no attention
        by_epoch[each.instance, each.epoch].append(each)
    return [
        Finding(
            kind=FindingKind.RECONCILED,
            message="tokens that the engine counted for these requests beyond the last that was heard of "
            "them, absorbed",
            instance=engine[0],
            epoch=engine[1],
            tokens=sum((each.tokens for each in found), NO_TOKENS),
            count=len(found),
            ids=[each.request_id for each in found[:20]],
        )
        for engine, found in sorted(by_epoch.items())
    ]


def difference_findings(connection: Connection) -> list[Finding]:
    """Requests whose events differ from what their engine counted."""
    rows = connection.execute(
        select(request_difference).order_by(request_difference.c.found_ms, request_difference.c.request_id)
    ).mappings()
    by_epoch: dict[tuple[str, str], list[RowMapping]] = defaultdict(list)
    for row in rows:
        by_epoch[row["instance"], row["epoch"]].append(row)
    return [
        Finding(
            kind=FindingKind.REQUEST_DIFFERS,
            message="the engine counted something else for these requests than their events say",
            instance=engine[0],
            epoch=engine[1],
            tokens=sum(
                (
                    CounterPair(
                        row["counted_prompt"] - row["recorded_prompt"],
                        row["counted_generation"] - row["recorded_generation"],
                    )
                    for row in found
                ),
                NO_TOKENS,
            ),
            count=len(found),
            ids=[row["request_id"] for row in found[:20]],
        )
        for engine, found in sorted(by_epoch.items())
    ]


def engine_findings(reading: AuditReading) -> list[Finding]:
    """What could not be read."""
    found = [
        Finding(
            kind=FindingKind.UNREADABLE, message=f"the entry of instance {name} cannot be read", instance=name
        )
        for name in reading.poll.registry.unreadable
    ]
    for each in reading.poll.registry.instances:
        engine = reading.poll.readings.get(each.instance)
        finding = partial(Finding, instance=each.instance, epoch=each.epoch)
        if isinstance(engine, Unreachable):
            message = f"the engine does not tell its counters: {engine.reason}"
            found.append(finding(kind=FindingKind.UNREACHABLE, message=message))
        elif isinstance(engine, NoCounters) and each.has_counters:
            message = "the engine has no counters: its usage cannot be audited"
            found.append(finding(kind=FindingKind.NO_COUNTERS, message=message))
    if reading.open.unreadable:
        message = "open reservations that cannot be read"
        found.append(
            Finding(
                kind=FindingKind.UNREADABLE,
                message=message,
                count=len(reading.open.unreadable),
                ids=reading.open.unreadable[:20],
            )
        )
    return found


def balance_findings(reading: AuditReading) -> list[Finding]:
    """What does not balance."""
    found: list[Finding] = []
    for balance in reading.balances:
        finding = partial(Finding, instance=balance.instance, epoch=balance.epoch)
        if balance.lost != NO_TOKENS:
            message = (
                "the engine ended before its last counters were read; what was metered beyond them "
                "counts as produced"
            )
            found.append(finding(kind=FindingKind.COUNTER_LOST, message=message, tokens=balance.lost))
        # What the engine did before its baseline (a worker's first probe, or requests of others) is in no
        # residual.
        if balance.unexplained and balance.residual != NO_TOKENS:
            message = "the engine produced tokens for requests that have neither a reservation nor an event"
            tokens = sum(balance.unexplained.values(), NO_TOKENS)
            names = sorted(balance.unexplained)
            found.append(
                finding(
                    kind=FindingKind.REQUEST_UNKNOWN,
                    message=message,
                    tokens=tokens,
                    count=len(names),
                    ids=names[:20],
                )
            )
        if balance.residual != NO_TOKENS:
            message = "produced is not billed + absorbed + open"
            found.append(finding(kind=FindingKind.RESIDUAL, message=message, tokens=balance.residual))
    return found
