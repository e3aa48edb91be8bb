"""The work that waits at an instance: what this process has sent, and what others say."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.loads import SAID_S_MAX, Load, Said

steps = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 10_000)), max_size=20)


@given(steps)
def test_prompts_drain_at_the_rate_and_never_below_nothing(added: list[tuple[float, float]]) -> None:
    load, now, expected = Load(rate=1_000.0), 100.0, 0.0
    for pause_s, tokens in added:
        now += pause_s
        expected = max(0.0, expected - 1_000 * pause_s) + tokens
        load.add_unread(tokens, now)
        assert abs(load.queued(now) - expected) < 1e-3
    assert load.queued(now + expected / 1_000 + 1) == 0.0


def test_streams_wait_in_their_order_and_a_first_token_shows_the_rate() -> None:
    load = Load(rate=1_000.0)
    load.add_waiting(1, 2_000.0, 10.0)
    load.add_waiting(2, 600.0, 10.5)
    assert (load.queued(10.0), load.queued(11.0)) == (2_600.0, 1_600.0)
    assert load.queued(60.0) == 1_100.0  # however long it takes, its end and the second are still to be read
    assert load.read(1, 14.0) == 500.0
    assert abs(load.queued(14.1) - 500.0) < 1e-6
    load.add_waiting(3, 100.0, 14.2)
    assert load.read(3, 14.3) is None  # not the one that was being read
    assert load.read(2, 15.0) == 600.0
    assert load.read(2, 15.0) is None
    assert load.queued(15.0) == 0.0


def test_what_others_said_is_summed_replaced_and_forgotten() -> None:
    load = Load(rate=100.0)
    load.told("g1", Said(3, 500.0, 10.0))
    load.told("g2", Said(2, 100.0, 10.0))
    assert (load.open_elsewhere, load.queued(10.0), load.queued(12.0)) == (5, 600.0, 400.0)
    load.told("g1", Said(1, 0.0, 10.5))
    assert (load.open_elsewhere, load.queued(10.5)) == (3, 50.0)
    load.forget(10.2 + SAID_S_MAX)
    assert (load.open_elsewhere, list(load.others)) == (1, ["g1"])
    load.forget(11.0 + SAID_S_MAX)
    assert (load.open_elsewhere, load.others) == (0, {})


def test_others_do_not_count_as_work_of_this_process() -> None:
    load = Load()
    load.add_waiting(1, 7.0, 10.0)
    load.told("g1", Said(3, 500.0, 10.0))
    assert load.queued_here(10.0) == 7.0
