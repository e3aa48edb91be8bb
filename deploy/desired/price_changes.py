"""What has to be done so that price lists are as the file says. A list is a schedule: the price without a
moment holds until the first of the others, so a file stays true when a dated price takes effect.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from deploy.desired.document import AMOUNTS, Entry
from deploy.desired.step import Call, Step, Turn, all_new, changed

# As `taas price set` asks about.
_MUCH: Final = 10

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """A list of prices in the admin API: of what tenants pay, or of what providers charge."""

    noun: str
    path: str
    turn: Turn


SALE: Final = Book(noun="price", path="prices", turn=Turn.PRICE)
COST: Final = Book(noun="cost price", path="cost-prices", turn=Turn.COST_PRICE)


def price_steps(
    book: Book, model: str, listed: Sequence[Entry], rows: Sequence[Row], now_ms: int, *, prune: bool
) -> Iterator[Step]:
    """Of one model. `rows`: what the API has, the oldest first."""
    for instance in dict.fromkeys(each.fields.get("instance") for each in listed):
        yield from _schedule(
            book,
            model,
            [entry for entry in listed if entry.fields.get("instance") == instance],
            [row for row in rows if row.get("instance") == instance],
            now_ms,
        )
    wanted = {(entry.fields.get("instance"), entry.fields["from"]) for entry in listed}
    for row in rows if prune else ():
        if row["from"] > now_ms and (row.get("instance"), row["from"]) not in wanted:
            yield Step(
                turn=Turn.PRICE_WITHDRAWN,
                action="delete",
                what=book.noun,
                name=model,
                place=None,
                fields=[("from", rfc3339(row["from"]), None)],
                calls=(Call(method="DELETE", path=(book.path, str(row["price_id"]))),),
            )


def _schedule(
    book: Book, model: str, listed: Sequence[Entry], rows: Sequence[Row], now_ms: int
) -> Iterator[Step]:
    past = [entry for entry in listed if (entry.fields["from"] or 0) <= now_ms]
    held = [row for row in rows if row["from"] <= now_ms]
    if past:
        latest = max(past, key=lambda entry: entry.fields["from"] or 0)
        yield from _price(
            book, model, latest, held[-1] if held else None, None if held else latest.fields["from"]
        )
    for entry in listed:
        if entry not in past:
            start = entry.fields["from"]
            yield from _price(book, model, entry, next((r for r in rows if r["from"] == start), None), start)


def _price(book: Book, model: str, entry: Entry, before: Row | None, start: int | None) -> Iterator[Step]:
    amounts = {name: entry.fields[name] for name in AMOUNTS}
    differs = all_new(amounts) if before is None else changed(amounts, before)
    if not differs:
        return
    much = [name for name, old, new in differs if old is not None and _is_much(old, new)]
    of = {"instance": entry.fields["instance"]} if "instance" in entry.fields else {}
    begins = {} if start is None else {"from": start}
    body = {"model": model, **of, **amounts, **begins, "confirmed": True}
    yield Step(
        turn=book.turn,
        action="create" if before is None else "change",
        what=book.noun,
        name=model,
        place=entry.place,
        fields=[
            *all_new(of), *differs, ("from", None, "now" if start is None else rfc3339(start)),
        ],
        note=f"by more than {_MUCH} times: {', '.join(much)}" if much else "",
        calls=(Call(method="POST", path=(book.path,), body=body),),
    )  # fmt: skip


def _is_much(old: str, new: str) -> bool:
    low, high = sorted((float(old), float(new)))
    return high > _MUCH * low


def rfc3339(moment_ms: int) -> str:
    """In UTC."""
    from billing.moments import utc

    return utc(moment_ms)
