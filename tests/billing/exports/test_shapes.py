"""Files of recorded requests: each in its published form, and each token in it once."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError
from sqlalchemy import Engine

from billing.catalogue.money import Money
from billing.exports import files
from billing.exports.reading import requests_between
from billing.exports.recorded import Form, RecordedRequest
from billing.exports.shapes import bodies, stripe_events
from billing.exports.table import write
from billing.ledger.usage_export import span_of
from billing.wire.tokens import TOKEN_KINDS
from tests.billing.ledger.test_chain import books  # noqa: F401 (a fixture)

SCHEMAS = Path(__file__).parent / "schemas"


@pytest.fixture
def recorded(books: Engine) -> Iterator[list[RecordedRequest]]:  # noqa: F811
    """Priced, unpriced and priced later, absorbed: a1 to a5, then the correction of a3."""
    with books.connect() as connection:
        span = span_of(connection, "ten_a", 0, 10**14)
        yield list(requests_between(connection, "ten_a", span.first, span.last))


def written(recorded: list[RecordedRequest], form: Form, customer: str | None = None) -> list[Any]:
    return [json.loads(line) for line in files.lines(recorded, form, customer)]


def check(form: Form, instances: list[Any]) -> None:
    schema = json.loads((SCHEMAS / f"{form.value}.json").read_text())
    assert instances
    for instance in instances:
        jsonschema.validate(instance, schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("form", Form)
def test_each_form_is_as_published(recorded: list[RecordedRequest], form: Form) -> None:
    check(form, written(recorded, form, "cus_1"))


def test_libraries_of_the_receivers_take_it(recorded: list[RecordedRequest]) -> None:
    """Stripe's and Lago's types are made of the schemas that they publish; the other is CloudEvents' own."""
    from cloudevents.core.formats.json import JSONFormat
    from cloudevents.core.v1.event import CloudEvent
    from lago_python_client.models import BatchEvent
    from stripe.params.v2.billing import _meter_event_stream_create_params as of_stripe

    for each in written(recorded, Form.CLOUDEVENTS):
        read = JSONFormat().read(CloudEvent, json.dumps(each))
        assert (read.get_id(), read.get_subject(), read.get_data()) == (each["id"], "ten_a", each["data"])
    for body in written(recorded, Form.LAGO):
        taken = BatchEvent(**body)
        assert [event.transaction_id for event in taken.events] == [
            e["transaction_id"] for e in body["events"]
        ]
    strict = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    for typed in (of_stripe.MeterEventStreamCreateParams, of_stripe.MeterEventStreamCreateParamsEvent):
        typed.__pydantic_config__ = strict  # type: ignore[attr-defined]
    taker = TypeAdapter(of_stripe.MeterEventStreamCreateParams)
    for body in written(recorded, Form.STRIPE, "cus_1"):
        taker.validate_python(body)
        body["events"][0]["payload"]["value"] = 5
        with pytest.raises(ValidationError):
            taker.validate_python(body)


def test_a_request_priced_later_has_its_tokens_once_and_its_amount_once(
    recorded: list[RecordedRequest],
) -> None:
    said = written(recorded, Form.CLOUDEVENTS)
    assert [each["data"]["request_id"] for each in said] == ["a1", "a2", "a3", "a4", "a5", "a3"]
    assert len({each["id"] for each in said}) == 6
    assert [each["type"] for each in said] == ["taas.usage"] * 5 + ["taas.usage.priced"]
    assert "tokens" not in said[5]["data"]
    assert [each["data"]["amount"] for each in said] == [
        "0.00002", "0.0000315", None, "0.00", "0.00002", "0.000055",
    ]  # fmt: skip
    assert said[1]["data"]["tokens"] == dict(zip(TOKEN_KINDS, (15, 5, 0, 7), strict=True))
    assert (said[0]["subject"], said[0]["time"]) == ("ten_a", "2023-11-14T22:13:21.500Z")


def test_every_form_says_the_same_tokens(recorded: list[RecordedRequest]) -> None:
    of_cloud: dict[str, int] = dict.fromkeys(TOKEN_KINDS, 0)
    for each in written(recorded, Form.OPENMETER):
        for kind, count in each["data"].get("tokens", {}).items():
            of_cloud[kind] += count
    stripe, lago = ([e for body in written(recorded, form) for e in body["events"]]
                    for form in (Form.STRIPE, Form.LAGO))  # fmt: skip
    rows = list(
        csv.DictReader(b"".join(write("csv", files.COLUMNS, files.rows(recorded))).decode().splitlines())
    )
    for kind, count in of_cloud.items():
        assert sum(int(e["payload"]["value"]) for e in stripe if e["payload"]["token_kind"] == kind) == count
        assert (
            sum(int(e["properties"]["tokens"]) for e in lago if e["properties"]["token_kind"] == kind)
            == count
        )
        assert sum(int(row[kind]) for row in rows) == count
    assert sum(of_cloud.values()) == 15 + 27 + 15 + 15
    owed = sum((each.amount for each in recorded if each.amount is not None), Money(0))
    assert str(sum(Decimal(row["amount"] or 0) for row in rows)) == str(owed)
    assert len({e["identifier"] for e in stripe}) == len(stripe)
    assert {e["external_subscription_id"] for e in lago} == {"ten_a"}


def test_a_body_has_at_most_a_hundred_events_and_an_identifier_a_hundred_characters(
    recorded: list[RecordedRequest],
) -> None:
    sizes = [len(body["events"]) for body in bodies(recorded[:2] * 60, Form.LAGO)]
    assert sizes == [100, 100, 100]
    assert sum(map(len, bodies(recorded * 40, Form.CLOUDEVENTS))) == 240
    long = replace(recorded[0], request_id="r" * 128)
    names = [each["identifier"] for each in stripe_events(long, "cus_1")]
    assert len(set(names)) == 2
    assert all(len(name) <= 100 for name in names)
    assert stripe_events(replace(recorded[0], pricing="quarantined"), "cus_1") == []
