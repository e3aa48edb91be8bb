"""One request's receipt: what was produced, delivered, billed and absorbed, why, and what it costs. This
module finds it in SQL, in a usage stream on its way there, or still open in its cell. It changes nothing.
"""

from collections.abc import Mapping
from typing import Any

import orjson
import redis
from sqlalchemy import Connection, and_, select

from billing.catalogue.money import Money
from billing.catalogue.price_book import prices_by_id
from billing.catalogue.projection import read_cells
from billing.ledger.entries import STANDS, Pricing
from billing.ledger.receipt_parts import Receipt, merge_parts
from billing.schema.ledger import ledger_posting, ledger_transaction, usage_event
from billing.wire import redis_keys
from billing.wire.ending import Ending, absorb_reason
from billing.wire.tokens import UsageEventError
from billing.wire.usage_event import CapacityClass, UsageEvent


def find_receipt(
    connection: Connection, client: redis.Redis, request_id: str, *, tenant: str | None = None
) -> Receipt | None:
    """The receipt of this request. None if there is none, or if it is another tenant's. The client must not
    decode responses.
    """
    if "\x00" in request_id:
        return None
    receipt = _found(connection, client, request_id)
    if receipt is None or (tenant is not None and receipt.tenant != tenant):
        return None
    if receipt.facts.get("class") != CapacityClass.FLEX:
        return receipt
    # A preempted flex request is resumed under its id with a number after it.
    parts = [receipt]
    while (part := _found(connection, client, f"{request_id}-{len(parts) + 1}")) is not None:
        parts.append(part)
    return merge_parts(parts) if len(parts) > 1 else receipt


def is_waiting(client: redis.Redis, request_id: str) -> bool:
    """Whether it waits for a slot, or has been granted one that it does not use yet: it has no receipt
    yet.
    """
    with client.pipeline(transaction=False) as read:
        for cell in read_cells(client):
            read.hget(redis_keys.reservation(cell, request_id), "state")
        return any(state in {b"waiting", b"granted"} for state in read.execute())


def _found(connection: Connection, client: redis.Redis, request_id: str) -> Receipt | None:
    return (
        _recorded(connection, request_id)
        or _in_redis(client, request_id)
        or _recorded(connection, request_id)
    )


def _recorded(connection: Connection, request_id: str) -> Receipt | None:
    query = (
        select(
            usage_event,
            ledger_transaction.c.pricing,
            ledger_transaction.c.price_id,
            ledger_posting.c.amount_picousd,
        )
        .select_from(usage_event)
        .join(ledger_transaction, and_(ledger_transaction.c.request_id == usage_event.c.request_id, STANDS))
        .outerjoin(
            ledger_posting,
            and_(
                ledger_posting.c.transaction_id == ledger_transaction.c.transaction_id,
                ledger_posting.c.account == "receivable",
            ),
        )
        .where(usage_event.c.request_id == request_id)
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
    names = (
        "request_id", "kind", "tenant", "project", "key_id", "model", "pool", "cell", "instance", "epoch",
        "route", "stream", "class", "contract", "weights", "samples", "started_ms", "first_token_ms",
        "ended_ms", "waited_ms", "ending", "usage_source", "anomaly", "units_mu", "decision", "http_status",
        "gateway", "orphan",
    )  # fmt: skip
    ignored = {"ignored": row["ignored"]} if row["ignored"] else {}
    return {name: row[name] for name in names} | ignored | {
        "ending": Ending(row["ending"]).value,
        "produced": _tokens(row, "produced"),
        "delivered": {"output": row["delivered_output"]},
        "billed": _tokens(row, "billed"),
        "absorbed": {
            "prompt": row["absorbed_prompt"], "output": row["absorbed_output"],
            "reasons": {absorb_reason(name).value: part for name, part in row["absorbed_reasons"].items()},
        },
    }  # fmt: skip


def _tokens(row: Mapping[Any, Any], what: str) -> dict[str, int]:
    return {kind: row[f"{what}_{kind}"] for kind in ("prompt", "cached", "output")}


def _in_redis(client: redis.Redis, request_id: str) -> Receipt | None:
    cells = read_cells(client)
    with client.pipeline(transaction=False) as read:
        for cell in cells:
            read.hgetall(redis_keys.reservation(cell, request_id))
        reservations = read.execute()
    for cell, reservation in zip(cells, reservations, strict=True):
        if reservation.get(b"state") == b"open":
            return _open(reservation)
        if reservation.get(b"state") == b"settled" and b"event" in reservation:
            return _settled(client, cell, reservation[b"event"])
    return None


def _open(reservation: Mapping[bytes, bytes]) -> Receipt:
    produced = {
        kind: int(reservation.get(field, 0))
        for kind, field in (("prompt", b"p"), ("cached", b"c"), ("output", b"o"))
    }
    head: dict[str, Any] = orjson.loads(reservation[b"head"])
    head.pop("v", None)
    return Receipt(
        "open", head | {"produced": produced, "delivered": {"output": int(reservation.get(b"d", 0))}}
    )


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
