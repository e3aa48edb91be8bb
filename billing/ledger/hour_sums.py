"""Adds recorded requests to the sums by hour, in the SQL transaction that records them. What it does not add,
triggers of the ledger do.
"""

from collections.abc import Iterable
from typing import Any, Final

import orjson
from sqlalchemy import Connection, text

from billing.moments import HOUR_MS
from billing.schema.ledger import USAGE_SUMS, usage_hour
from billing.wire.part_ids import is_later_part
from billing.wire.usage_event import UsageEvent

_NAMES: Final = tuple(str(column.name) for column in usage_hour.columns)
_KEY: Final = tuple(str(column.name) for column in usage_hour.primary_key.columns)


def _add() -> str:
    columns = ", ".join(f'"{name}"' for name in _NAMES)
    key = ", ".join(f'"{name}"' for name in _KEY)
    sums = ", ".join(f"{name} = usage_hour.{name} + excluded.{name}" for name in USAGE_SUMS)
    return (
        f"insert into usage_hour ({columns}) select {columns} "  # noqa: S608 (names of our own table)
        "from jsonb_populate_recordset(null::usage_hour, cast(:rows as jsonb)) "
        f"on conflict ({key}) do update set {sums}"
    )


_ADD: Final = text(_add())


def add_to_hours(connection: Connection, priced: Iterable[tuple[UsageEvent, str, int | None, int]]) -> None:
    """Each event with its pricing, the number of its price, and its amount in pico-dollars. The caller holds
    the heads of the chains of their tenants, so nobody else adds to these sums.
    """
    sums: dict[tuple[Any, ...], list[int]] = {}
    for event, pricing, price_id, picousd in priced:
        billed, absorbed = event.billed, event.absorbed
        key = (
            event.tenant, event.project, event.key_id, event.model,
            event.class_.value if event.line is None else "batch", event.contract or "", event.instance,
            pricing, event.ended_ms // HOUR_MS, price_id or 0,
        )  # fmt: skip
        adds = (
            0 if is_later_part(event.request_id) else 1, billed.prompt, billed.cached, billed.written,
            billed.output, absorbed.prompt, absorbed.output, event.units_mu, picousd,
        )  # fmt: skip
        if (found := sums.get(key)) is None:
            sums[key] = list(adds)
        else:
            found[:] = [had + more for had, more in zip(found, adds, strict=True)]
    if sums:
        rows = [_row(key, added) for key, added in sorted(sums.items())]
        connection.execute(_ADD, {"rows": orjson.dumps(rows).decode()})


def _row(key: tuple[Any, ...], added: list[int]) -> dict[str, Any]:
    row = dict(zip(_KEY, key, strict=True)) | dict(zip(USAGE_SUMS, added, strict=True))
    row["amount_picousd"] = str(row["amount_picousd"])
    return row
