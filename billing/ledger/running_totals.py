"""What is kept beside recorded events, in the same SQL transaction: the sums of each run of an engine, and
when keys were last used.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import orjson
from sqlalchemy import Connection, text

from billing.schema.ledger import TOTAL_COLUMNS
from billing.wire.usage_event import UsageEvent

_NOTE_USE: Final = text("""
    insert into api_key_use (key_id, last_used_ms)
    select key, value::bigint from jsonb_each_text(cast(:used as jsonb)) order by 1
    on conflict (key_id) do update
    set last_used_ms = greatest(api_key_use.last_used_ms, excluded.last_used_ms)
""")


def note_use(connection: Connection, events: Sequence[UsageEvent]) -> None:
    """Record when keys were last used: all by one statement, in one order, so that two consumers cannot
    deadlock.
    """
    latest: dict[str, int] = {}
    for event in events:
        latest[event.key_id] = max(event.ended_ms, latest.get(event.key_id, 0))
    if latest:
        connection.execute(_NOTE_USE, {"used": orjson.dumps(latest).decode()})


_ADD_TOTALS: Final = text("""
    insert into usage_total
    select * from jsonb_populate_recordset(null::usage_total, cast(:rows as jsonb)) order by instance, epoch
    on conflict (instance, epoch) do update set
      billed_prompt = usage_total.billed_prompt + excluded.billed_prompt,
      billed_output = usage_total.billed_output + excluded.billed_output,
      absorbed_prompt = usage_total.absorbed_prompt + excluded.absorbed_prompt,
      absorbed_output = usage_total.absorbed_output + excluded.absorbed_output
""")


def add_totals(connection: Connection, events: Iterable[UsageEvent]) -> None:
    """Add new events to the running totals of their instances."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for event in events:
        billed, absorbed, total = event.billed, event.absorbed, sums[event.instance, event.epoch]
        total[0] += billed.prompt
        total[1] += billed.output
        total[2] += absorbed.prompt
        total[3] += absorbed.output
    _add_totals(connection, sums)


def add_total(connection: Connection, instance: str, epoch: str, tokens: dict[str, int]) -> None:
    """Add tokens (by the names of `TOTAL_COLUMNS`) to what one run of an engine was metered for."""
    _add_totals(connection, {(instance, epoch): [tokens[name] for name in TOTAL_COLUMNS]})


def _add_totals(connection: Connection, sums: Mapping[tuple[str, str], Sequence[int]]) -> None:
    if sums:
        rows = [
            {"instance": instance, "epoch": epoch, **dict(zip(TOTAL_COLUMNS, total, strict=True))}
            for (instance, epoch), total in sums.items()
        ]
        connection.execute(_ADD_TOTALS, {"rows": orjson.dumps(rows).decode()})
