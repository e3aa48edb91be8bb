"""Who leads, for how long that is certain, and when a leader's work is due."""

import redis

from billing.leadership import Leadership, LeadersRounds

LOCK = "taas:a-lock"


def test_one_leads_and_another_takes_over_once_it_lets_go(raw_redis: redis.Redis) -> None:
    first, second = Leadership(raw_redis), Leadership(raw_redis)
    assert (first.hold(LOCK), second.hold(LOCK)) == (True, False)
    assert (first.holds(LOCK), second.holds(LOCK)) == (True, False)
    first.release_all()
    assert second.hold(LOCK)
    assert (first.holds(LOCK), second.holds(LOCK)) == (False, True)


def test_who_has_not_renewed_for_as_long_as_the_lock_lives_is_not_certain_of_it(
    raw_redis: redis.Redis,
) -> None:
    now_s = 100.0
    first = Leadership(raw_redis, clock=lambda: now_s)
    assert first.hold(LOCK)
    assert first.holds(LOCK)
    now_s = 103.0
    assert not first.holds(LOCK), "another may lead by now"
    assert first.hold(LOCK)
    assert first.holds(LOCK)


def test_work_is_done_at_once_by_who_begins_to_lead_then_by_its_interval() -> None:
    leads, now_s, done = False, 100.0, []
    rounds = LeadersRounds(lambda: leads, lambda: done.append(now_s), interval_ms=10_000, clock=lambda: now_s)
    rounds.step()
    assert done == []
    leads = True
    for now_s in (100.0, 101.0, 109.0, 110.0):  # noqa: B007 - the clock reads it
        rounds.step()
    assert done == [100.0, 110.0]
    leads = False
    rounds.step()
    leads, now_s = True, 111.0
    rounds.step()
    assert done == [100.0, 110.0, 111.0], "it has not been this process's work meanwhile"
