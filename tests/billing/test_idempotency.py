"""What is kept of requests that carry an `Idempotency-Key`: with the change or not at all, for a day, and
no more than a cap.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, text

from billing.idempotency import (
    ANSWER_BYTES_MAX,
    KEPT_MAX,
    KEPT_MS,
    IdempotencyClaim,
    StoredAnswer,
    carry_out,
    find_answer,
    forget_old,
    keep_answer,
)
from billing.refusals import Conflict, Invalid

CLAIM = IdempotencyClaim.of("admin", "k-1", b"/path", b"", b"{}")
ANSWER = StoredAnswer(201, b'{"a": 1}')


@pytest.fixture
def connection(database: Engine) -> Iterator[Connection]:
    with database.connect() as connection:
        yield connection


def age(connection: Connection, ms: int) -> None:
    connection.execute(text("update idempotent_request set created_ms = created_ms - :ms"), {"ms": ms})


def test_an_answer_is_found_by_its_caller_and_its_request_alone(connection: Connection):
    carry_out(connection, CLAIM)
    keep_answer(connection, CLAIM, ANSWER)
    assert find_answer(connection, CLAIM) == ANSWER
    assert find_answer(connection, IdempotencyClaim.of("service", "k-1", b"/path", b"", b"{}")) is None
    assert find_answer(connection, IdempotencyClaim.of("admin", "k-2", b"/path", b"", b"{}")) is None
    for other in (
        (b"/other", b"", b"{}"),
        (b"/path", b"a=1", b"{}"),
        (b"/path", b"", b"{} "),
        (b"/pat", b"h", b"{}"),
    ):
        with pytest.raises(Invalid) as caught:
            find_answer(connection, IdempotencyClaim.of("admin", "k-1", *other))
        assert caught.value.code == "idempotency_key_reused"


def test_a_change_that_is_taken_back_leaves_its_key_free(database: Engine):
    with database.connect() as connection:
        carry_out(connection, CLAIM)
    with database.connect() as connection:
        assert find_answer(connection, CLAIM) is None
        carry_out(connection, CLAIM)


def test_a_second_one_is_refused_while_the_first_runs_and_after_it(database: Engine):
    with database.connect() as first, database.connect() as second:
        carry_out(first, CLAIM)
        for _ in range(2):
            with pytest.raises(Conflict) as caught:
                carry_out(second, CLAIM)
            assert caught.value.code == "idempotency_key_in_use"
            second.rollback()
            first.commit()


def test_fault_22_an_answer_that_never_came_is_told_as_lost(database: Engine):
    with database.begin() as connection:
        carry_out(connection, CLAIM)
    with database.begin() as connection:
        with pytest.raises(Conflict) as caught:
            find_answer(connection, CLAIM)
        assert caught.value.code == "idempotency_key_in_use"
        age(connection, 60_001)
        with pytest.raises(Conflict) as caught:
            find_answer(connection, CLAIM)
        assert caught.value.code == "idempotency_answer_lost"


def test_the_first_answer_stays_and_a_large_one_is_not_kept(connection: Connection):
    keep_answer(connection, CLAIM, ANSWER)
    keep_answer(connection, CLAIM, StoredAnswer(200, b"{}"))
    assert find_answer(connection, CLAIM) == ANSWER
    other = IdempotencyClaim.of("admin", "k-2")
    keep_answer(connection, other, StoredAnswer(200, b"x" * (ANSWER_BYTES_MAX + 1)))
    assert find_answer(connection, other) is None


def test_what_is_older_than_a_day_is_forgotten_and_nothing_else(connection: Connection):
    keep_answer(connection, CLAIM, ANSWER)
    age(connection, KEPT_MS - 10_000)
    keep_answer(connection, IdempotencyClaim.of("admin", "k-2"), ANSWER)
    connection.commit()
    assert forget_old(connection) == 0
    age(connection, 10_001)
    connection.commit()
    assert forget_old(connection) == 1
    assert find_answer(connection, CLAIM) is None
    assert find_answer(connection, IdempotencyClaim.of("admin", "k-2")) == ANSWER


def test_no_more_than_the_cap_is_kept(connection: Connection):
    rows = (
        "insert into idempotent_request (caller, key_hash, fingerprint) select 'admin', n::text, '' "
        "from generate_series(1, :n) n"
    )
    connection.execute(text(rows), {"n": KEPT_MAX})
    assert find_answer(connection, CLAIM) is None
    connection.execute(
        text("insert into idempotent_request (caller, key_hash, fingerprint) values ('admin', 'x', '')")
    )
    assert find_answer(connection, IdempotencyClaim.of("another", "k-1")) is None, "each caller has its own"
    with pytest.raises(Conflict) as caught:
        find_answer(connection, CLAIM)
    assert caught.value.code == "too_many_idempotency_keys"
