"""Running totals into minutes: nothing is lost, nothing counted twice, whatever the moments of reading."""

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from billing.allocator.minutes import Account, Minute, Totals, advance, opened
from billing.moments import MINUTE_MS

T0 = 1_800_000_000_000
FOREVER = T0 * 2

readings = st.lists(
    st.tuples(
        st.integers(0, 200_000),
        st.builds(
            Totals, used_mu=st.integers(-500, 5000), borrowed_mu=st.integers(0, 50), refused=st.integers(0, 3)
        ),
    ),
    min_size=1,
    max_size=20,
)  # fmt: skip


def written(steps: list[tuple[int, Totals]], *, again: bool) -> tuple[dict[int, Minute], Totals, int]:
    """What stands in SQL after these readings, each that long after the one before; `again`: each round is
    done twice, the first half.
    """
    account, now_ms = (
        replace(opened("c", T0 + 59_500, Totals()), rate_mu_s=1000, missing_mu_s=300),
        T0 + 59_500,
    )
    rows: dict[int, Minute] = {}
    total = Totals()
    for after_ms, more in steps:
        now_ms += after_ms
        total = Totals(
            used_mu=total.used_mu + more.used_mu,
            borrowed_mu=total.borrowed_mu + more.borrowed_mu,
            refused=total.refused + more.refused,
        )
        for _ in range(2 if again else 1):
            touched, new = advance(account, now_ms, total, end_ms=FOREVER, lent_mu=7)
            rows |= {each.minute_ms: each for each in touched}
        account = Account.from_record(json.loads(json.dumps(new.to_record())))
    return rows, total, now_ms


@given(readings, st.booleans())
def test_the_minutes_are_the_totals(steps: list[tuple[int, Totals]], again: bool) -> None:
    rows, total, now_ms = written(steps, again=again)
    assert sum(row.used_mu for row in rows.values()) == total.used_mu
    assert sum(row.borrowed_mu for row in rows.values()) == total.borrowed_mu
    assert sum(row.refused for row in rows.values()) == total.refused
    assert sum(row.lent_mu for row in rows.values()) == 7 * len(steps)
    assert sum(row.assigned_mu_ms for row in rows.values()) == 1000 * (now_ms - T0 - 59_500)
    assert sum(row.missing_mu_ms for row in rows.values()) == 300 * (now_ms - T0 - 59_500)
    assert all(row.assigned_mu <= 60 * 1000 for row in rows.values())


def test_a_reading_across_a_minute_is_divided_by_time() -> None:
    account = replace(opened("c", T0 + 59_000, Totals()), rate_mu_s=1000)
    touched, _ = advance(
        account, T0 + 63_000, Totals(used_mu=400, borrowed_mu=40, refused=4), end_ms=FOREVER, lent_mu=0
    )
    assert touched == [
        Minute(minute_ms=T0, assigned_mu_ms=1_000_000, used_mu=100, lent_mu=0, borrowed_mu=10, refused=1),
        Minute(
            minute_ms=T0 + MINUTE_MS,
            assigned_mu_ms=3_000_000,
            used_mu=300,
            lent_mu=0,
            borrowed_mu=30,
            refused=3,
        ),
    ]


def test_nothing_is_assigned_past_the_end() -> None:
    account = replace(opened("c", T0, Totals()), rate_mu_s=1000, missing_mu_s=400)
    touched, after = advance(account, T0 + 3_000, Totals(used_mu=5), end_ms=T0 + 2_000, lent_mu=0)
    assert touched == [Minute(minute_ms=T0, assigned_mu_ms=2_000_000, used_mu=5, missing_mu_ms=800_000)]
    late, _ = advance(after, T0 + 4_000, Totals(used_mu=6), end_ms=T0 + 2_000, lent_mu=0)
    assert late == [Minute(minute_ms=T0, assigned_mu_ms=2_000_000, used_mu=6, missing_mu_ms=800_000)]


def test_a_clock_that_goes_back_assigns_nothing_twice() -> None:
    _, account = advance(
        replace(opened("c", T0, Totals()), rate_mu_s=1000),
        T0 + 1_000,
        Totals(used_mu=1),
        end_ms=FOREVER,
        lent_mu=0,
    )
    touched, after = advance(account, T0 - 5_000, Totals(used_mu=3), end_ms=FOREVER, lent_mu=0)
    assert touched == [Minute(minute_ms=T0, assigned_mu_ms=1_000_000, used_mu=3)]
    assert after.at_ms == T0 + 1_000
