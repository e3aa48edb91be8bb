"""Runners claim lines, die, come back and record, in any order: no line has two results, and no attempt is
made twice.
"""

from pathlib import Path
from secrets import token_hex

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, insert, select, text

from billing.batch import line_rows
from billing.batch.answers import Usage
from billing.batch.file_rows import parts_of
from billing.batch.line_rows import GivenBack, Result
from billing.batch.objects import Objects
from billing.batch.settings import BatchSettings
from billing.schema.batches import batch
from billing.schema.catalogue import tenant

RUNNERS, LAST = ("one", "two", "three"), "last"
LINES = 5


@pytest.fixture(autouse=True)
def owner(database: Engine) -> None:
    row = {"tenant_id": "ten_a", "name": "a", "kind": "external", "on_demand": True, "redis_down": {}}
    with database.begin() as connection:
        connection.execute(insert(tenant).values(row))


class Table:
    """A batch of five lines, and what each runner believes that it has."""

    def __init__(self, database: Engine, objects: Objects, status: str = "in_progress") -> None:
        self.database, self.objects = database, objects
        self.batch_id = f"batch_{token_hex(8)}"
        self.has: dict[str, dict[int, int]] = {runner: {} for runner in (*RUNNERS, LAST)}
        self.attempts: list[tuple[int, int]] = []
        self.recorded: list[int] = []
        with database.begin() as connection:
            connection.execute(text("delete from batch_runner"))
            row = {
                "batch_id": self.batch_id, "dialect": "openai", "tenant_id": "ten_a", "project": "p",
                "key_id": "k", "input_file": "f", "route": "chat", "status": status, "total": LINES,
                "expires_ms": 10**15,
            }  # fmt: skip
            connection.execute(insert(batch).values(row))
            line_rows.add_lines(connection, self.batch_id, [(0, 1)] * LINES, list(range(LINES)))

    def renew(self, runner: str) -> None:
        with self.database.begin() as connection:
            line_rows.renew(connection, runner, 60)

    def lapse(self, runner: str) -> None:
        with self.database.begin() as connection:
            line_rows.renew(connection, runner, -60)

    def claim(self, runner: str, limit: int = 3, *, begin: bool = True) -> list[int]:
        with self.database.begin() as connection:
            rows = line_rows.claim(connection, self.batch_id, runner, limit, begin=begin)
        for row in rows:
            self.attempts.append((row.line, row.attempt))
            self.has[runner][row.line] = row.attempt
        return [row.line for row in rows]

    def record(self, runner: str) -> list[int]:
        results = [
            Result(
                line=line,
                attempt=attempt,
                request_id="req_1",
                kind="output",
                text=b"%d\n" % line,
                usage=Usage(output_tokens=1),
            )
            for line, attempt in self.has[runner].items()
        ]
        self.has[runner].clear()
        with self.database.begin() as connection:
            ours = line_rows.record(connection, self.objects, runner, self.batch_id, results)
        self.recorded += [each.line for each in ours]
        return [each.line for each in ours]

    def give_back(self, runner: str, *, lost: bool, wait_ms: int = 0) -> None:
        lines = [
            GivenBack(line=line, attempt=attempt, lost=lost, wait_ms=wait_ms, failures=0)
            for line, attempt in self.has[runner].items()
        ]
        self.has[runner].clear()
        with self.database.begin() as connection:
            line_rows.give_back(connection, runner, self.batch_id, lines)

    def output(self) -> list[int]:
        """The lines of the output, as it is read."""
        with self.database.connect() as connection:
            names = parts_of(connection, self.batch_id, ("output",))
        return [int(line) for name in names for line in b"".join(self.objects.read(name)).splitlines()]

    def counts(self) -> tuple[int, int]:
        query = select(batch.c.completed, batch.c.output_tokens).where(batch.c.batch_id == self.batch_id)
        with self.database.connect() as connection:
            row = connection.execute(query).one()
        return row.completed, row.output_tokens


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(BatchSettings(home=tmp_path))


@pytest.mark.parametrize("lost", [False, True])
def test_no_plan_of_the_database_claims_more_lines_than_asked(
    database: Engine, objects: Objects, lost: bool
) -> None:
    """It looks each line up by itself where its statistics do not know of the batch yet."""
    Table(database, objects)
    with database.begin() as connection:
        connection.execute(text("analyze batch_line"))
    table = Table(database, objects)
    if lost:
        table.claim("two", LINES)
    assert len(table.claim("one", 2)) == 2


def test_a_runner_that_was_overtaken_records_nothing(database: Engine, objects: Objects) -> None:
    table = Table(database, objects)
    table.renew("one")
    table.renew("two")
    assert table.claim("one") == [0, 1, 2]
    assert table.claim("two", 5) == [3, 4]
    table.lapse("one")
    assert table.claim("two", 5) == [0, 1, 2]
    table.renew("one")
    assert table.record("one") == []
    assert table.record("two") == [3, 4, 0, 1, 2]
    assert sorted(table.output()) == [0, 1, 2, 3, 4]


def test_after_a_cancellation_only_lost_lines_are_sent_again(database: Engine, objects: Objects) -> None:
    table = Table(database, objects)
    table.renew("one")
    table.claim("one", 1)
    table.give_back("one", lost=True)
    with database.begin() as connection:
        connection.execute(text("update batch set status = 'cancelling'"))
    assert table.claim("one", 5) == [0], "the others were never sent"


def test_a_line_that_waits_is_not_claimed_before_its_time(database: Engine, objects: Objects) -> None:
    table = Table(database, objects)
    table.renew("one")
    table.claim("one", 1)
    table.give_back("one", lost=False, wait_ms=60_000)
    assert table.claim("one", 5) == [1, 2, 3, 4]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["renew", "lapse", "claim", "record", "lost", "back", "die"]),
        st.sampled_from(RUNNERS),
    ),
    max_size=40,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_no_line_has_two_results_and_each_can_still_get_one(
    database: Engine, objects: Objects, steps: list[tuple[str, str]]
) -> None:
    table = Table(database, objects)
    for step, runner in steps:
        if step == "renew":
            table.renew(runner)
        elif step == "lapse":
            table.lapse(runner)
        elif step == "claim":
            table.claim(runner, 2)
        elif step == "record":
            table.record(runner)
        elif step == "die":
            table.has[runner].clear()
            table.lapse(runner)
        else:
            table.give_back(runner, lost=step == "lost")
    for runner in RUNNERS:
        table.lapse(runner)
    # A process has a name of its own, so none that died comes back.
    table.renew(LAST)
    while table.claim(LAST):
        table.record(LAST)
    assert len(set(table.attempts)) == len(table.attempts)
    assert sorted(table.recorded) == list(range(LINES))
    assert sorted(table.output()) == list(range(LINES))
    assert table.counts() == (LINES, LINES)
