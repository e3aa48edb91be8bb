"""What may be changed of an export of the books of `test_usage_export`, or may have been recorded and signed
wrong; and what `taas-verify` must say of it.
"""

import base64
import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from billing.catalogue.money import ZERO, Money
from billing.invoices.lines import to_cents
from billing.ledger.chain_entry import Parts, canonical, digest, link
from billing.ledger.chain_entry import entry as chained
from tests.billing.invoices.test_close import DECEMBER, HOUR_MS, OCTOBER
from tests.billing.verified import KEY

Records = list[dict[str, Any]]


def one(records: Records, **wanted: Any) -> dict[str, Any]:
    """The first record with these members."""
    return next(each for each in records if wanted.items() <= each.items())


def entry(records: Records, request_id: str) -> dict[str, Any]:
    return next(each for each in records if each.get("entry", {}).get("request_id") == request_id)


def _event(records: Records) -> None:
    entry(records, "req_1")["event"]["billed_output"] += 1


def _internal(records: Records) -> None:
    entry(records, "req_1")["internal"] = "0" * 64


def _posting(records: Records) -> None:
    entry(records, "req_1")["postings"][1][2] = "-1"


def _price(records: Records) -> None:
    one(records, record="price", model="m1")["output_picousd"] += 1


def _receipt(records: Records) -> None:
    entry(records, "req_1")["receipt"][0]["tokens"] -= 1


def _moment(records: Records) -> None:
    entry(records, "req_1")["entry"]["recorded_ms"] += 1


def _amount(records: Records) -> None:
    entry(records, "req_4")["entry"]["amount_picousd"] = "5"


def _hash(records: Records) -> None:
    entry(records, "req_2")["hash"] = "0" * 64


def _swapped(records: Records) -> None:
    first, second = records.index(entry(records, "req_2")), records.index(entry(records, "ä"))
    records[first], records[second] = records[second], records[first]


def _taken_out(records: Records) -> None:
    records.remove(entry(records, "req_2"))


def _cut_off(records: Records) -> None:
    del records[-1]


def _invoice_taken_out(records: Records) -> None:
    records.remove(one(records, record="invoice", number="INV-000002"))


def _unsigned(records: Records) -> None:
    one(records, record="checkpoint")["signature"] = None


def _checkpoint(records: Records) -> None:
    one(records, record="checkpoint")["checkpoint"]["at_ms"] += 1


def _end(records: Records) -> None:
    records[-1]["amount_picousd"] = "1"


def _other_tenant(records: Records) -> None:
    records[0]["tenant"]["id"] = "ten_x"


def _invoice(records: Records) -> None:
    one(records, number="INV-000001")["document"]["lines"][0]["tokens"] += 1


def _invoice_of_ours(records: Records) -> None:
    """Signed as it is, and wrong: a token too many in a line, whose sums are right."""
    record = one(records, number="INV-000003")
    line = next(line for line in record["document"]["lines"] if line["kind"] == "output")
    line["tokens"] += 1
    line["exact"] = "1.000002"
    _sign(record)


def _price_of_a_line(records: Records) -> None:
    """Twice the price that was recorded."""
    record = one(records, number="INV-000003")
    line = next(line for line in record["document"]["lines"] if line["kind"] == "output")
    line |= {"price": "6.00", "exact": str(Money(6 * 10**6 * line["tokens"]))}
    _sum(record)


def _late_usage_as_of_now(records: Records) -> None:
    """Late usage of October among November's own: other tiers, and nothing covers it."""
    record = one(records, number="INV-000002")
    for line in record["document"]["lines"]:
        if line.get("period") == "2023-10":
            line["period"] = "2023-11" if line["type"] == "usage" else None
    _sign(record)


def _no_period_is_late(records: Records) -> None:
    record = one(records, number="INV-000002")
    record["document"]["earlier"] = []
    _sign(record)


def _commitment_twice(records: Records) -> None:
    lines = one(records, number="INV-000003")["document"]["lines"]
    lines.append(next(line for line in lines if line["type"] == "commitment") | {"line": len(lines) + 1})
    _sum(one(records, number="INV-000003"))


def _commitment_of_more(records: Records) -> None:
    """More than the terms say."""
    record = one(records, number="INV-000003")
    (line,) = (line for line in record["document"]["lines"] if line["type"] == "commitment")
    line |= {"committed": "6.00", "exact": str(Money.parse(line["exact"]) + Money.parse("1"))}
    _sum(record)


def _discount_of_another_tier(records: Records) -> None:
    """The same tier twice instead of two tiers."""
    record = one(records, number="INV-000002")
    lines = record["document"]["lines"]
    first, second = (line for line in lines if line["type"] == "discount" and line["period"] is None)
    second |= {name: first[name] for name in first if name != "line"}
    _sum(record)


def _discount_of_less(records: Records) -> None:
    record = one(records, number="INV-000002")
    next(line for line in record["document"]["lines"] if line["type"] == "discount")["of"] = "0.01"
    _sign(record)


def _fee(records: Records) -> None:
    record = one(records, number="INV-000003")
    record["document"]["lines"].append({"line": 9, "type": "fee", "exact": "1.00", "amount": "1.00"})
    _sum(record)


def _capacity(records: Records, *spans: tuple[int, int]) -> None:
    """Two hours of capacity at 1 USD, or parts of them, and a credit for what was short of none of it."""
    record = one(records, number="INV-000003")
    held = {"contract": "con_1", "price_per_unit_hour": "1.00"}
    for from_ms, until_ms in spans:
        record["document"]["lines"].append({
            **held, "line": 9, "type": "capacity", "from_ms": from_ms, "until_ms": until_ms,
            "milliunits_per_second": 1000, "exact": str(Money((until_ms - from_ms) * 10**12 // HOUR_MS)),
        })  # fmt: skip
    _sum(record)


def _capacity_twice(records: Records) -> None:
    _capacity(records, (DECEMBER, DECEMBER + HOUR_MS), (DECEMBER + HOUR_MS - 36_000, DECEMBER + 2 * HOUR_MS))


def _capacity_of_before(records: Records) -> None:
    _capacity(records, (DECEMBER - HOUR_MS, DECEMBER + HOUR_MS))


def _short_of_nothing(records: Records) -> None:
    record = one(records, number="INV-000003")
    record["document"]["lines"].append({
        "line": 9, "type": "sla_credit", "contract": "con_1", "from_ms": DECEMBER, "exact": "-1.00",
        "until_ms": DECEMBER + HOUR_MS, "price_per_unit_hour": "1.00", "percent": 100,
        "milliunits_short": 3_600_000,
    })  # fmt: skip
    _sum(record)


def _credit_twice(records: Records) -> None:
    record = one(records, number="INV-000003")
    record["document"]["credits"] = [{"credit": "crd_1", "amount": "0.10"}] * 2
    _sum(record)


def _credits_of_too_much(records: Records) -> None:
    record = one(records, number="INV-000003")
    record["document"]["credits"] = [{"credit": "crd_1", "amount": "100.00"}]
    _sum(record)


def _note_without_its_tax(records: Records) -> None:
    record = one(records, number="CN-000001")
    record["document"] |= {"tax": "0.00", "total": "-0.50", "due": "-0.50"}
    _sign(record)


def _note_without_its_tax_or_invoice(records: Records) -> None:
    _note_without_its_tax(records)
    for number in ("INV-000001", "INV-000002", "INV-000003"):
        records.remove(one(records, number=number))


def _note_of_more_than_there_is(records: Records) -> None:
    record = one(records, number="CN-000001")
    (line,) = record["document"]["lines"]
    line["exact"] = "-100.00"
    _sum(record)


def _note_that_gives_back_a_credit(records: Records) -> None:
    """As if a credit had paid the invoice."""
    record = one(records, number="CN-000001")
    record["document"] |= {"credits": [{"credit": "crd_9", "amount": "-0.10"}], "due": "-0.50"}
    _sign(record)


def _credit_of_a_note_used_beyond_it(records: Records) -> None:
    _note_that_gives_back_a_credit(records)
    record = one(records, number="INV-000003")
    record["document"]["credits"] = [{"credit": "crd_9", "amount": "0.11"}]
    _sum(record)


def _number_twice(records: Records) -> None:
    record = one(records, number="INV-000003")
    record["document"]["number"] = record["number"] = "INV-000002"
    _sign(record)


def _number_of_before(records: Records) -> None:
    record = one(records, number="INV-000001")
    record["document"]["number"] = record["number"] = "INV-000009"
    _sign(record)


def _invoice_of_another_tenant(records: Records) -> None:
    record = one(records, number="INV-000003")
    record["document"]["tenant"]["id"] = "ten_x"
    _sign(record)


def _billed_twice(records: Records) -> None:
    """The same request, once more in the chain."""
    at = records.index(entry(records, "req_1"))
    again = json.loads(json.dumps(records[at]))
    again["entry"]["entry"] += 1000
    records.insert(at + 1, again)
    _chain(records)


def _corrected_twice(records: Records) -> None:
    (at,) = (number for number, each in enumerate(records) if each.get("entry", {}).get("corrects"))
    records.insert(at + 1, json.loads(json.dumps(records[at])))
    _chain(records)


def _priced_again(records: Records) -> None:
    """What had its price, as if it had had none."""
    again = json.loads(json.dumps(entry(records, "req_1")))
    again["entry"]["corrects"] = True
    records.insert(records.index(entry(records, "ä")), again)
    _chain(records)


def _line_twice(records: Records) -> None:
    """Two requests of one line of a batch, and both are billed."""
    entry(records, "ä")["event"]["line"] = "bat_1/1"
    _chain(records)


def _price_of_another_model(records: Records) -> None:
    entry(records, "req_1")["event"]["model"] = "m2"
    _chain(records)


def _price_of_later(records: Records) -> None:
    one(records, record="price", model="m1")["valid_from_ms"] = OCTOBER + 5
    _chain(records)


def _price_of_a_contract(records: Records) -> None:
    one(records, record="price", model="m1")["contract_id"] = "con_1"
    _chain(records)


def _billed_in_doubt(records: Records) -> None:
    entry(records, "req_1")["event"]["anomaly"] = "usage_missing"
    _chain(records)


def _billed_more_than_produced(records: Records) -> None:
    entry(records, "req_1")["event"]["produced_output"] -= 1
    _chain(records)


def _event_of_another_tenant(records: Records) -> None:
    entry(records, "req_1")["event"]["tenant"] = "ten_x"
    _chain(records)


def _chain(records: Records) -> None:
    """As if all of it had been recorded and signed as it says now."""
    tenant, entries, hash_ = records[0]["tenant"]["id"], 0, records[0]["previous"]
    prices = {
        each["price_id"]: digest({name: each[name] for name in each if name != "record"})
        for each in records
        if each["record"] == "price"
    }
    for each in records:
        if each["record"] == "entry":
            entries += 1
            postings = each.get("postings")
            parts = Parts(
                event=digest(each["event"]), internal=each["internal"],
                postings=digest({"lines": postings}) if postings else "",
                price=prices.get(each.get("price_id"), ""),
            )  # fmt: skip
            place = {"chain": tenant, "position": entries, "chained_ms": each["chained_ms"]}
            hash_ = link(hash_, chained({**place, **each["entry"]}, parts))
            each |= {"position": entries, "parts": parts.prefixes(), "hash": hash_}
    records[0]["last"] = records[-1]["entries"] = entries
    amounts = (int(each["entry"]["amount_picousd"]) for each in records if each["record"] == "entry")
    records[-1]["amount_picousd"] = str(sum(amounts))
    head = one(records, record="checkpoint")
    head["checkpoint"] |= {"position": entries, "hash": hash_}
    text = b"taas usage checkpoint 1\n" + canonical(head["checkpoint"])
    head["signature"] = base64.b64encode(KEY.sign(text)).decode()


def _covered_too_little(records: Records) -> None:
    """As if nothing of October's commitment was left for its late usage; its sums are right."""
    record = one(records, number="INV-000002")
    document = record["document"]
    document["earlier"][0]["unused"] = "0.00"
    (line,) = (line for line in document["lines"] if line["type"] == "covered")
    document["lines"].remove(line)
    for number, each in enumerate(document["lines"], 1):
        each["line"] = number
    _sum(record)


def _sum(record: dict[str, Any]) -> None:
    """What follows from its lines, and its signature."""
    document = record["document"]
    for line in document["lines"]:
        line["amount"] = str(to_cents(Money.parse(line["exact"]).picousd))
    net = sum((Money.parse(line["amount"]) for line in document["lines"]), ZERO)
    tax = to_cents(Fraction(net.picousd * 19, 100))
    paid = sum((Money.parse(each["amount"]) for each in document.get("credits", ())), ZERO)
    document |= {"net": str(net), "tax": str(tax), "total": str(net + tax), "due": str(net + tax - paid)}
    _sign(record)


def _sign(record: dict[str, Any]) -> None:
    record["sha256"] = digest(record["document"])
    record["signature"] = base64.b64encode(KEY.sign(b"taas invoice 1\n" + record["sha256"].encode())).decode()


CHANGES: list[tuple[Callable[[Records], None], str]] = [
    (_event, "request req_1 (position 1): its event part is not as it was recorded"),
    (_internal, "request req_1 (position 1): its internal part is not as it was recorded"),
    (_posting, "request req_1 (position 1): its postings part is not as it was recorded"),
    (_price, "price 1: it is not as it was recorded"),
    (_receipt, "request req_1 (position 1): uncached_input of its receipt (tokens, price, amount)"),
    (_moment, "request req_1 (position 1): its place, moment, pricing or amount is not as it was"),
    (_amount, "request req_4 (position 4): its place, moment, pricing or amount is not as it was"),
    (_hash, "request req_2 (position 2): its place, moment, pricing or amount is not as it was"),
    (_swapped, "request ä (position 6): it follows position 1"),
    (_taken_out, "request req_3 (position 3): it follows position 1"),
    (_cut_off, "the export is cut off: it has no end"),
    (_unsigned, "it is not signed"),
    (_checkpoint, "its signature is not of the key"),
    (_end, "end: its amount in pico-dollars: it says 1, and is"),
    (_other_tenant, "its tenant: it says"),
    (_invoice, "invoice INV-000001: the SHA-256 of its document"),
    (
        _invoice_taken_out,
        "INV-000003: the invoice before it, from 2023-11-01 00:00:00 until 2023-12-01 00:00:00",
    ),
    (
        _covered_too_little,
        "INV-000002, late usage of 2023-10: its unused commitment: it says 0.00, and is",
    ),
    (_invoice_of_ours, "m1 on_demand price 1 output: its tokens: it says 500001, and is 500000"),
    (_price_of_a_line, "invoice INV-000003, line 2: its price, by price 1: it says 6.00, and is 2.00"),
    (_late_usage_as_of_now, "INV-000002, late usage, 2023-10 prj_a m1 on_demand price 1 output: its tok"),
    (_no_period_is_late, "INV-000002: the periods of its late usage: it says [], and is ['2023-10']"),
    (_commitment_twice, "invoice INV-000003: its lines commitment 5.00: it says 2, and is 1"),
    (_commitment_of_more, "invoice INV-000003: its lines commitment 6.00: it says 1, and is 0"),
    (_discount_of_another_tier, "invoice INV-000002: its lines discount 3.00: it says 0, and is 1"),
    (_discount_of_less, "(discount): of what: it says 0.01, and is"),
    (_fee, "invoice INV-000003, line 9 (fee): nothing says how much it is"),
    (_capacity_twice, "line 9 (capacity): it is not within the period, or of a time that another"),
    (_capacity_of_before, "line 9 (capacity): it is not within the period, or of a time that another"),
    (_short_of_nothing, "line 9 (sla_credit): no capacity is charged of which it could give back"),
    (_credit_twice, "invoice INV-000003: its credits are more than it, or less than nothing, or"),
    (_credits_of_too_much, "invoice INV-000003: its credits are more than it, or less than nothing, or"),
    (_note_without_its_tax, "credit note CN-000001: its tax: it says 0.00, and is -0.10"),
    (_note_without_its_tax_or_invoice, "credit note CN-000001: its tax is not that of what it gives"),
    (_note_of_more_than_there_is, "CN-000001: it gives back more than is left of INV-000002"),
    (
        _note_that_gives_back_a_credit,
        "CN-000001: what it gives back as credits: it says 0.10, and is 0.00",
    ),
    (
        _credit_of_a_note_used_beyond_it,
        "credit crd_9 of credit note CN-000001: invoices use more than it gives",
    ),
    (_number_twice, "invoice INV-000002: there is another document of this number"),
    (_number_of_before, "invoice INV-000002: its number is before that of the invoice before it"),
    (_invoice_of_another_tenant, "invoice INV-000003: its tenant: it says ten_x, and is ten_"),
    (_billed_twice, "request req_1 (position 2): it is in the chain a second time"),
    (_corrected_twice, "request req_3 (position 9): it is in the chain a second time"),
    (_priced_again, "request req_1 (position 6): it is priced a second time"),
    (_line_twice, "request ä (position 6): line bat_1/1 of a batch is billed a second time"),
    (_price_of_another_model, "price 1 is not of its model, moment, class or contract"),
    (_price_of_later, "price 1 is not of its model, moment, class or contract"),
    (_price_of_a_contract, "price 1 is not of its model, moment, class or contract"),
    (_billed_in_doubt, "request req_1 (position 1): it is billed, though its usage is in doubt"),
    (_billed_more_than_produced, "request req_1 (position 1): produced_output: it says 500000, and is"),
    (_event_of_another_tenant, "request req_1 (position 1): the tenant of its event: it says ten_x"),
]
