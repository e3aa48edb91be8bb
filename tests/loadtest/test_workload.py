"""The workload is the same for the same seed, mixed as asked, and arrives without waiting for anybody."""

import itertools
from statistics import mean, pstdev

import pytest

from loadtest.workload import ROUTES, Call, Mix, arrival_times, calls


def some(mix: Mix, seed: int = 1, count: int = 2000) -> list[Call]:
    return list(itertools.islice(calls(mix, seed), count))


def test_arrivals_are_poisson() -> None:
    times = list(arrival_times(50, 200, 7))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert mean(gaps) == pytest.approx(0.02, rel=0.05)
    # Exponential gaps scatter as much as they last; evenly spaced ones, or those of a closed loop, do not.
    assert pstdev(gaps) == pytest.approx(mean(gaps), rel=0.1)
    assert times[-1] < 200


def test_same_seed_same_calls_at_the_same_times() -> None:
    mix = Mix(model="m")
    assert some(mix, 3, 50) == some(mix, 3, 50) != some(mix, 4, 50)
    assert list(arrival_times(5, 10, 3)) == list(arrival_times(5, 10, 3)) != list(arrival_times(5, 10, 4))


def test_shares_are_as_asked() -> None:
    made = some(Mix(model="m", long_share=0.2, shared_share=0.3, disconnect_share=0.25))
    share = {
        kind: sum(call.kind == kind for call in made) / len(made) for kind in ("short", "long", "shared")
    }
    assert share == {
        "short": pytest.approx(0.5, abs=0.05),
        "long": pytest.approx(0.2, abs=0.05),
        "shared": pytest.approx(0.3, abs=0.05),
    }
    assert sum(call.leave_after_events is not None for call in made) / len(made) == pytest.approx(
        0.25, abs=0.05
    )
    assert {call.route for call in made} == set(ROUTES)


def test_shared_prompts_share_long_prefixes() -> None:
    prompts = [str(call.body) for call in some(Mix(model="m", shared_share=1)) if call.route == "chat"]
    assert len({prompt[:1000] for prompt in prompts}) == 4
    assert len(set(prompts)) == len(prompts)


def test_nobody_leaves_after_more_than_was_asked_for() -> None:
    for call in some(Mix(model="m", disconnect_share=1, output_tokens=(1, 5))):
        assert call.leave_after_events is not None
        assert 0 <= call.leave_after_events < call.output_tokens_max <= 5
