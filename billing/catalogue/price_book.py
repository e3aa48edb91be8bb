"""Prices per model with validity dates, append-only: what tenants pay (`SALE`), and what providers charge
(`COST`), for a model or at one instance of it. It owns which price holds at a moment; it knows no event and
no ledger.

A price holds from its `valid_from_ms` until the next one of its model. Priced requests stay priced: a new
price never starts at a past moment that already has one, and only a price that does not hold yet can be
withdrawn or replaced. Requests recorded before their model had a price stay `unpriced` until `backfill`
prices them. Moments are by Redis's clock, like the requests'.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, Select, Table, column, func, insert, select

from billing.catalogue import outbox
from billing.catalogue.money import Money, MoneyError, parse_price, price_string
from billing.catalogue.outbox import ChangeKind
from billing.page import Order, Page, PageRequest, read_page
from billing.refusals import Conflict, Invalid, NotFound
from billing.schema.capacity import contract
from billing.schema.clock import database_now_ms
from billing.schema.ledger import cost_price, cost_price_withdrawal, price_withdrawal
from billing.schema.ledger import price as price_table
from billing.schema.locks import AdvisoryLock
from billing.wire.tokens import Tokens

# A greater change is more likely a mistake than intended.
_FACTOR_UNASKED: Final = 10


@dataclass(frozen=True, slots=True)
class Scope:
    """For which requests of its model a price holds; None: for all. A provider may charge its own price at an
    instance; tenants may pay one of their contract, of their class (`batch`: lines of batches), or both.
    """

    instance: str | None = None
    contract_id: str | None = None
    class_: str | None = None


ALL: Final = Scope()


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One price of a model, in whole pico-dollars per token. `cache_write_picousd` None: as other input."""

    price_id: int
    model: str
    valid_from_ms: int
    input_picousd: int
    cached_input_picousd: int
    output_picousd: int
    cache_write_picousd: int | None = None
    scope: Scope = ALL

    @property
    def written_picousd(self) -> int:
        """Of a token that is put into a cache."""
        return self.input_picousd if self.cache_write_picousd is None else self.cache_write_picousd

    @property
    def by_kind(self) -> tuple[int, int, int, int]:
        """In the order of `TOKEN_KINDS`."""
        return self.input_picousd, self.cached_input_picousd, self.written_picousd, self.output_picousd

    def amount(self, tokens: Tokens) -> Money:
        """What these tokens cost; `cached` and `written` are parts of `prompt` and have their own prices."""
        return Money(
            tokens.amount(
                input=self.input_picousd,
                cached_input=self.cached_input_picousd,
                cache_write=self.written_picousd,
                output=self.output_picousd,
            )
        )


@dataclass(frozen=True, slots=True)
class PriceList:
    """Where prices of one sort are kept."""

    prices: Table
    withdrawals: Table

    def select(self, model: str | None = None) -> Select[Any]:
        """Those that were not withdrawn, of one model or of all."""
        query = select(self.prices).where(self.prices.c.price_id.not_in(select(self.withdrawals.c.price_id)))
        return query if model is None else query.where(self.prices.c.model == model)

    def order(self) -> Order[Price]:
        """The newest of each model first."""
        columns = self.prices.c
        return Order(
            f"{self.prices.name}s",
            lambda price: (price.model, -price.valid_from_ms, price.price_id),
            (str, int, int),
            (columns.model, -columns.valid_from_ms, columns.price_id),
        )


# What tenants pay; what providers charge.
SALE: Final = PriceList(price_table, price_withdrawal)
COST: Final = PriceList(cost_price, cost_price_withdrawal)


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose a contract with prices of its own is, in which pool and when: [from, until)."""

    contract_id: str
    tenant_id: str
    pool: str
    from_ms: int
    until_ms: int


class PriceBook:
    """The prices of some models, and who holds contracts with prices, as one SQL transaction sees them."""

    def __init__(self, prices: Iterable[Price], holders: Iterable[Holder] = ()) -> None:
        self._newest_first: dict[tuple[str, Scope], list[Price]] = {}
        for price in sorted(prices, key=lambda price: -price.valid_from_ms):
            self._newest_first.setdefault((price.model, price.scope), []).append(price)
        self._holders: dict[tuple[str, str], list[Holder]] = {}
        for holder in holders:
            self._holders.setdefault((holder.tenant_id, holder.pool), []).append(holder)

    def at(self, model: str, moment_ms: int, scopes: Iterable[Scope] = (ALL,)) -> Price | None:
        """The price that holds for a request of this model that starts now: of the first of these scopes that
        has one; or None: it is then unpriced, never guessed.
        """
        for scope in scopes:
            for price in self._newest_first.get((model, scope), ()):
                if price.valid_from_ms <= moment_ms:
                    return price
        return None

    def contracts_held(self, tenant_id: str, pool: str, moment_ms: int) -> list[str]:
        """The tenant's contracts with prices of their own in this pool at this moment; the one that began
        last comes first.
        """
        held = [
            each
            for each in self._holders.get((tenant_id, pool), ())
            if each.from_ms <= moment_ms < each.until_ms
        ]
        held.sort(key=lambda each: (each.from_ms, each.contract_id), reverse=True)
        return [each.contract_id for each in held]


def read_price_book(connection: Connection, models: Iterable[str]) -> PriceBook:
    """The prices of these models. No price can be set until the transaction ends, so the caller records with
    all of them.
    """
    join_recording(connection)
    named = price_table.c.model.in_(sorted(set(models)))
    prices = [_price(row) for row in connection.execute(SALE.select().where(named)).mappings()]
    with_prices = {price.scope.contract_id for price in prices} - {None}
    if not with_prices:
        return PriceBook(prices)
    of = contract.c
    query = select(of.contract_id, of.tenant_id, of.pool, of.starts_ms, of.effective_end_ms)
    holders = connection.execute(query.where(of.contract_id.in_(with_prices)))
    return PriceBook(prices, [Holder(*row) for row in holders])


def list_prices(connection: Connection, model: str | None = None, *, of: PriceList = SALE) -> list[Price]:
    """All prices that were not withdrawn, of one model or of all, the newest of each first."""
    query = of.select(model).order_by(of.prices.c.model, of.prices.c.valid_from_ms.desc())
    return [_price(row) for row in connection.execute(query).mappings()]


def list_page(
    connection: Connection, asked: PageRequest, model: str | None = None, *, of: PriceList = SALE
) -> Page[Price]:
    """The same by pages."""
    return read_page(connection, of.select(model), of.order(), lambda row: _price(row._mapping), asked)


def for_sale_from(connection: Connection) -> dict[str, int]:
    """When each model has a price from that holds for all; a model without such a price is missing."""
    stands = SALE.select().subquery()
    for_all = stands.c.contract_id.is_(None), stands.c["class"].is_(None)
    query = select(stands.c.model, func.min(stands.c.valid_from_ms)).where(*for_all).group_by(stands.c.model)
    return {row[0]: row[1] for row in connection.execute(query)}


def join_recording(connection: Connection) -> None:
    """Be one of those who record, before anything is recorded: who holds prices waits until the transaction
    ends, and the other way round. So nothing is recorded that a closing of that time has not seen.
    """
    connection.execute(select(func.pg_advisory_xact_lock_shared(AdvisoryLock.PRICES)))


def hold_prices(connection: Connection) -> None:
    """Wait for batches that are being recorded, and block new ones until the transaction ends: no price
    changes, and nothing is priced.
    """
    connection.execute(select(func.pg_advisory_xact_lock(AdvisoryLock.PRICES)))


@dataclass(frozen=True, slots=True)
class SetPrice:
    """A price that was set, and the price that it replaced before that took effect. `before`: what its
    requests would have cost then without it.
    """

    price: Price
    replaces: Price | None = None
    before: Price | None = None

    @property
    def changes_much(self) -> bool:
        """Whether a token costs over ten times more or less than before."""
        if self.before is None:
            return False
        return any(map(_is_much, self.before.by_kind, self.price.by_kind))


def set_price(
    connection: Connection,
    model: str,
    *,
    input: str,
    cached_input: str,
    output: str,
    cache_write: str | None = None,
    valid_from_ms: int | None = None,
    confirmed: bool = True,
    now_ms: Callable[[], int] | None = None,
    scope: Scope = ALL,
    of: PriceList = SALE,
) -> SetPrice:
    """Append a price (USD per million tokens, decimal strings); without a date it holds from now on. The
    caller commits. `now_ms` reads Redis's clock. It replaces a future price of this scope for the same
    moment.

    Raises `Invalid` for a text that is not a price; `Conflict` if it would change the price of a past moment,
    and, unless `confirmed`, if a token would cost over ten times more or less.
    """
    amounts: dict[str, int] = {}
    for name, given in (
        ("input", input), ("cached_input", cached_input), ("output", output), ("cache_write", cache_write),
    ):  # fmt: skip
        try:
            if given is not None:
                amounts[f"{name}_picousd"] = parse_price(given)
        except MoneyError as exc:
            raise Invalid(str(exc), param=name) from exc
    hold_prices(connection)
    # Read under the lock, so that "from now on" is true to the millisecond.
    now = database_now_ms(connection) if now_ms is None else now_ms()
    start_ms = now if valid_from_ms is None else valid_from_ms
    known = list_prices(connection, model, of=of)
    same = next((each for each in known if (each.valid_from_ms, each.scope) == (start_ms, scope)), None)
    others = PriceBook(price for price in known if price is not same)
    before = others.at(model, start_ms, (scope, ALL))
    if same is not None and start_ms <= now:
        raise Conflict(
            f"model {model!r} already has a price from that moment", param="from", code="already_priced"
        )
    # In the past only the first price for all may begin: another one would hold instead of it.
    priced_since = before if scope == ALL else others.at(model, now, (scope, ALL))
    if start_ms < now and priced_since is not None:
        raise Conflict(
            f"model {model!r} already has a price at that moment, and what was priced stays priced",
            param="from",
            code="already_priced",
        )
    before = before or same
    if not confirmed:
        _refuse_unasked(before, amounts)
    if same is not None:
        connection.execute(insert(of.withdrawals).values(price_id=same.price_id))
    columns = {"instance": scope.instance, "contract_id": scope.contract_id, "class": scope.class_}
    place = {name: value for name, value in columns.items() if value is not None}
    made = insert(of.prices).values(model=model, valid_from_ms=start_ms, **amounts, **place)
    row = connection.execute(made.returning(*of.prices.c))
    outbox.record(connection, ChangeKind.MODEL, model)
    return SetPrice(_price(row.mappings().one()), same, before)


def withdraw_price(
    connection: Connection,
    price_id: int,
    *,
    now_ms: Callable[[], int] | None = None,
    of: PriceList = SALE,
) -> Price:
    """Withdraw a price that does not hold yet. Raises NotFound; Conflict for a price that holds or has
    held.
    """
    hold_prices(connection)
    found = next((each for each in list_prices(connection, of=of) if each.price_id == price_id), None)
    if found is None:
        raise NotFound(f"There is no price {price_id}, or it has been withdrawn.", param="price_id")
    if found.valid_from_ms <= (database_now_ms(connection) if now_ms is None else now_ms()):
        message = "This price holds or has held: what was priced stays priced. Set another one, from now on."
        raise Conflict(message, param="price_id", code="already_priced")
    connection.execute(insert(of.withdrawals).values(price_id=price_id))
    outbox.record(connection, ChangeKind.MODEL, found.model)
    return found


def _is_much(was: int, now: int) -> bool:
    return max(was, now) > _FACTOR_UNASKED * min(was, now)


def _refuse_unasked(before: Price | None, amounts: dict[str, int]) -> None:
    if before is None:
        return
    for name, now in amounts.items():
        was: int = before.written_picousd if name == "cache_write_picousd" else getattr(before, name)
        if _is_much(was, now):
            what = name.removesuffix("_picousd").replace("_", " ")
            raise Conflict(
                f"The price of {what} would change from {price_string(was)} to {price_string(now)}, by more "
                f"than {_FACTOR_UNASKED} times.",
                param="confirmed",
                code="price_changes_much",
            )


def _price(row: RowMapping) -> Price:
    return Price(
        price_id=row["price_id"],
        model=row["model"],
        valid_from_ms=row["valid_from_ms"],
        input_picousd=row["input_picousd"],
        cached_input_picousd=row["cached_input_picousd"],
        output_picousd=row["output_picousd"],
        cache_write_picousd=row["cache_write_picousd"],
        scope=Scope(row.get("instance"), row.get("contract_id"), row.get("class")),
    )


def prices_by_id(
    connection: Connection, price_ids: Sequence[int], *, of: PriceList = SALE
) -> dict[int, Price]:
    """These prices, whatever their dates, as recorded transactions name them."""
    rows = connection.execute(select(of.prices).where(column("price_id").in_(price_ids))).mappings()
    return {row["price_id"]: _price(row) for row in rows}
