"""One request's receipt: what was produced, delivered, billed and absorbed, why, and what it costs. This
module finds it in SQL, in a usage stream on its way there, or still open in its cell. It changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import orjson
import redis
from sqlalchemy import Connection, select

from billing.catalogue.money import Money
from billing.catalogue.price_book import prices_by_id
from billing.catalogue.projection import read_cells
from billing.ledger.dropped import refuse_dropped_request
from billing.ledger.entries import OWED_EVENTS, Pricing
from billing.ledger.event_days import are_those, recorded
from billing.ledger.receipt_parts import Receipt, merge_parts
from billing.schema.ledger import (
    TOKEN_COLUMNS,
    WRITTEN_COLUMNS,
    ledger_posting,
    ledger_transaction,
    usage_event,
)
from billing.wire import redis_keys
from billing.wire.ending import Ending, absorb_reason
from billing.wire.part_ids import part_id
from billing.wire.reservation import FIELDS, stored
from billing.wire.tokens import UsageEventError
from billing.wire.usage_event import COLUMNS, UsageEvent

# Missing where they have no value, as in the event's JSON.
_OPTIONAL: Final = {
    field.encode_name
    for field in msgspec.structs.fields(UsageEvent)
    if field.default is not msgspec.NODEFAULT
}


def find_receipt(
    connection: Connection, client: redis.Redis, request_id: str, *, tenant: str | None = None
) -> Receipt | None:
    """The receipt of this request. None if there is none, or if it is another tenant's. The client must not
    decode responses. Raises NotFound, which says so, if retention has dropped it.
    """
    if "\x00" in request_id:
        return None
    receipt = _found(connection, client, request_id)
    if receipt is None:
        refuse_dropped_request(connection, request_id, tenant)
    if receipt is None or (tenant is not None and receipt.tenant != tenant):
        return None
    if not receipt.facts.get("stream"):
        return receipt
    parts = [receipt]
    while (part := _found(connection, client, part_id(request_id, len(parts) + 1))) is not None:
        parts.append(part)
    return merge_parts(parts) if len(parts) > 1 else receipt


def is_waiting(client: redis.Redis, request_id: str) -> bool:
    """Whether it waits for a slot, or has been granted one that it does not use yet: it has no receipt
    yet.
    """
    with client.pipeline(transaction=False) as read:
        for cell in read_cells(client):
            read.hget(redis_keys.reservation(cell, request_id), FIELDS["state"])
        return any(state in {b"waiting", b"granted"} for state in read.execute())


def _found(connection: Connection, client: redis.Redis, request_id: str) -> Receipt | None:
    return (
        _recorded(connection, request_id)
        or _in_redis(client, request_id)
        or _recorded(connection, request_id)
    )


def _recorded(connection: Connection, request_id: str) -> Receipt | None:
    days = recorded(connection, [request_id])
    if not days:
        return None
    query = (
        select(
            usage_event,
            ledger_transaction.c.pricing,
            ledger_transaction.c.price_id,
            ledger_posting.c.amount_picousd,
        )
        .select_from(OWED_EVENTS)
        .where(are_those(days))
    )
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        return None
    pricing = Pricing(row["pricing"])
    price = (
        prices_by_id(connection, [row["price_id"]])[row["price_id"]] if row["price_id"] is not None else None
    )
    amount = (
        Money.from_sql(row["amount_picousd"] or 0)
        if pricing in {Pricing.PRICED, Pricing.NOTHING_BILLED}
        else None
    )
    return Receipt("recorded", _facts_of_row(row), pricing, price, amount)


def _facts_of_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields of the event as its JSON has them: tokens of all kinds together."""
    names = ("kind", *(name for name in COLUMNS if name not in _OPTIONAL or row[name] is not None))
    facts: dict[str, Any] = {name: row[name] for name in names if name in row}
    for column in (*TOKEN_COLUMNS, *WRITTEN_COLUMNS, "absorbed_reasons"):
        tokens, kind = column.split("_")
        if kind != "written" or row[column]:
            facts.setdefault(tokens, {})[kind] = row[column]
    reasons = facts["absorbed"]["reasons"]
    facts["absorbed"]["reasons"] = {absorb_reason(name).value: part for name, part in reasons.items()}
    facts["ending"] = Ending(facts["ending"]).value
    return facts


def _in_redis(client: redis.Redis, request_id: str) -> Receipt | None:
    cells = read_cells(client)
    with client.pipeline(transaction=False) as read:
        for cell in cells:
            names = stored("state", "event", "head", "prompt", "cached", "output", "delivered")
            read.hmget(redis_keys.reservation(cell, request_id), names)
        found = read.execute()
    for cell, (state, entry_id, head, *tokens) in zip(cells, found, strict=True):
        if state == b"open":
            return _open(head, [int(count or 0) for count in tokens])
        if state == b"settled" and entry_id is not None:
            return _settled(client, cell, entry_id)
    return None


def _open(head: bytes, tokens: Sequence[int]) -> Receipt:
    prompt, cached, output, delivered = tokens
    facts: dict[str, Any] = orjson.loads(head)
    facts.pop("v", None)
    facts["produced"] = {"prompt": prompt, "cached": cached, "output": output}
    facts["delivered"] = {"output": delivered}
    return Receipt("open", facts)


def _settled(client: redis.Redis, cell: str, entry_id: bytes) -> Receipt | None:
    entries: Any = client.xrange(redis_keys.usage_stream(cell), entry_id, entry_id)
    if not entries:
        return None
    try:
        event = UsageEvent.from_json(entries[0][1][redis_keys.USAGE_FIELD.encode()])
    except (UsageEventError, KeyError):
        return None
    facts: dict[str, Any] = orjson.loads(event.to_json())
    facts.pop("v")
    return Receipt("settled", facts)
