"""A line of a batch is billed once, whatever attempts of it were made and in whatever order they are
recorded.
"""

import random
import threading
import uuid
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import Engine, func, select

from billing.ledger.entries import ReceivedEvent, record_events
from billing.schema.batches import line_bill
from billing.schema.ledger import usage_event, usage_total
from billing.wire.ending import Ending
from billing.wire.usage_event import UsageEvent
from tests.billing.events import event

LINE = "batch_0123456789abcdef/7"


def attempt(number: int, line: str = LINE, ending: Ending = Ending.COMPLETE, output: int = 5) -> UsageEvent:
    batch = line.partition("/")[0]
    made = event(tokens=(10, 0, output), ending=ending)
    return replace(made, request_id=f"req_{batch[6:]}{number:03}", line=line, instance=batch)


def record(database: Engine, *events: UsageEvent) -> None:
    with database.begin() as connection:
        record_events(connection, [ReceivedEvent.read(each.to_json()) for each in events])


def billed(database: Engine) -> dict[str, tuple[int, int, dict[str, object]]]:
    """What each request is billed and absorbed in output, and why."""
    columns = usage_event.c
    query = select(
        columns.request_id, columns.billed_output, columns.absorbed_output, columns.absorbed_reasons
    )
    with database.connect() as connection:
        return {row[0]: (row[1], row[2], row[3]) for row in connection.execute(query)}


def test_the_first_whole_answer_is_billed_and_repetitions_are_absorbed(database: Engine) -> None:
    first, second = attempt(1, output=5), attempt(2, output=6)
    record(database, first)
    record(database, second, attempt(3, output=7))
    found = billed(database)
    assert found[first.request_id] == (5, 0, {})
    assert found[second.request_id] == (0, 6, {"repeated": {"prompt": 10, "output": 6}})
    assert sum(each[0] for each in found.values()) == 5


def test_an_attempt_that_brought_no_answer_is_absorbed_and_bills_nothing(database: Engine) -> None:
    cut_off = attempt(1, ending=Ending.CLIENT_DISCONNECT, output=3)
    record(database, cut_off)
    record(database, attempt(2))
    found = billed(database)
    assert found[cut_off.request_id] == (0, 3, {"client_disconnect": {"prompt": 10, "output": 3}})
    assert found[attempt(2).request_id][0] == 5


def test_the_same_event_again_changes_nothing(database: Engine) -> None:
    record(database, attempt(1))
    record(database, attempt(1), attempt(2))
    record(database, attempt(1))
    assert billed(database)[attempt(1).request_id][0] == 5
    with database.connect() as connection:
        assert connection.execute(select(func.count()).select_from(line_bill)).scalar_one() == 1


def test_requests_that_are_no_lines_are_billed_as_they_say(database: Engine) -> None:
    plain = event(tokens=(10, 0, 4), ending=Ending.CLIENT_DISCONNECT)
    record(database, plain)
    assert billed(database)[plain.request_id][0] == 4


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([Ending.COMPLETE, Ending.COMPLETE, Ending.CLIENT_DISCONNECT, Ending.ENGINE_DIED]),
            st.integers(1, 50),
        ),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_any_attempts_in_any_order_bill_each_answered_line_once(
    database: Engine, attempts: list[tuple[int, Ending, int]], dice: random.Random
) -> None:
    batch = f"batch_{uuid.uuid4().hex[:16]}"
    events = [
        replace(
            attempt(number, f"{batch}/{line}", ending, output),
            request_id=f"req_{batch[6:]}{number}",
            instance=batch,
        )
        for number, (line, ending, output) in enumerate(attempts)
    ]
    arriving = events + dice.sample(events, k=len(events) // 2)  # some are delivered twice
    dice.shuffle(arriving)
    while arriving:
        size = dice.randint(1, 4)
        record(database, *arriving[:size])
        arriving = arriving[size:]
    _check(database, batch, events)


def test_consumers_that_record_at_the_same_moment_bill_once(database: Engine) -> None:
    batch = "batch_fedcba9876543210"
    events = [
        replace(
            attempt(number, f"{batch}/{number % 10}"),
            request_id=f"req_{batch[6:]}{number:03}",
            instance=batch,
        )
        for number in range(60)
    ]
    parts = [events[start::4] for start in range(4)]
    threads = [threading.Thread(target=record, args=(database, *part)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _check(database, batch, events)


def _check(database: Engine, batch: str, events: Sequence[UsageEvent]) -> None:
    columns = usage_event.c
    query = select(columns.line, func.count()).where(columns.instance == batch, columns.billed_output > 0)
    totals = select(usage_total).where(usage_total.c.instance == batch)
    with database.connect() as connection:
        counts = {row[0]: row[1] for row in connection.execute(query.group_by(columns.line))}
        total = connection.execute(totals).one()
    assert counts == {event.line: 1 for event in events if event.ending is Ending.COMPLETE}
    assert total.billed_output + total.absorbed_output == sum(event.produced.output for event in events)
