"""The fit: it finds the costs that made the measurements, keeps its bounds, and says so when they cannot
be told apart.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.calibration.fit import Fit, FitFailed, Measurement, fit

# Uncached, cached, output: what the mixes of a measurement are like.
SHAPES = [(128, 128, 64), (512, 0, 8), (32, 768, 8), (16, 0, 128), (64, 384, 32)]
HELD_BACK = (256, 256, 40)

Costs = tuple[float, float, float]
# Seconds per uncached token, and what the others cost beside it.
costs = st.tuples(st.floats(1e-6, 1e-2), st.floats(0, 1), st.floats(0.01, 200)).map(
    lambda drawn: (drawn[0], drawn[0] * drawn[1], drawn[0] * drawn[2])
)
noise = st.lists(st.floats(-0.02, 0.02), min_size=len(SHAPES), max_size=len(SHAPES))


def measured(shape: tuple[int, int, int], cost: Costs, requests: int = 1000, off: float = 0.0) -> Measurement:
    """What an engine with these costs does, its time measured wrongly by a part `off`."""
    uncached, cached, output = (count * requests for count in shape)
    seconds = uncached * cost[0] + cached * cost[1] + output * cost[2]
    return Measurement("mix", seconds * (1 + off), uncached, cached, output)


@given(costs)
def test_known_costs_are_found(cost: Costs) -> None:
    a, b, c = cost
    found = fit([measured(shape, cost) for shape in SHAPES])
    assert found.w_in_mu == 1000
    assert found.w_cached_mu == pytest.approx(1000 * b / a, abs=1)
    assert found.w_out_mu == pytest.approx(1000 * c / a, abs=1, rel=1e-4)
    assert found.capacity_mu_s == pytest.approx(1000 / a, rel=1e-4)
    assert abs(found.error_of(measured(HELD_BACK, cost))) < 0.01


@given(costs, noise)
def test_noise_of_two_percent_stays_small_in_the_prediction(cost: Costs, off: list[float]) -> None:
    found = fit([measured(shape, cost, off=part) for shape, part in zip(SHAPES, off, strict=True)])
    assert 0 <= found.w_cached_mu <= found.w_in_mu
    assert found.w_out_mu >= 1
    assert abs(found.error_of(measured(HELD_BACK, cost))) < 0.10


@given(costs, st.floats(0.01, 1000))
def test_how_long_was_measured_does_not_matter(cost: Costs, factor: float) -> None:
    rows = [measured(shape, cost) for shape in SHAPES]
    longer = [
        Measurement(row.mix, row.seconds * 8, row.uncached * 8, row.cached * 8, row.output * 8)
        for row in rows[::2]
    ]
    assert fit([*rows[1::2], *longer]).w_out_mu == pytest.approx(fit(rows).w_out_mu, abs=1, rel=1e-4)


def test_a_cache_that_seems_to_save_time_weighs_nothing() -> None:
    rows = [measured(shape, (1e-3, 0.0, 4e-3)) for shape in SHAPES]
    cheaper = [Measurement(row.mix, row.seconds * (0.9 if row.cached else 1), row.uncached, row.cached,
    row.output) for row in rows]  # fmt: skip
    assert fit(cheaper).w_cached_mu == 0


def test_a_cache_that_seems_to_cost_more_than_computing_weighs_as_computing() -> None:
    rows = [measured(shape, (1e-3, 1.5e-3, 4e-3)) for shape in SHAPES]
    found = fit(rows)
    assert found.w_cached_mu == found.w_in_mu == 1000


def test_without_a_cache_cached_tokens_weigh_as_uncached() -> None:
    rows = [
        measured((uncached + cached, 0, output), (1e-3, 0.0, 4e-3)) for uncached, cached, output in SHAPES
    ]
    assert fit(rows) == Fit(1000, 1000, 4000, 1_000_000, cached_measured=False)


@pytest.mark.parametrize(
    "shapes",
    [[], [(0, 0, 0)], [(10, 0, 0)], [(0, 0, 10)], [(10, 10, 10)] * 5, [(128, 0, 64), (256, 0, 128)]],
    ids=["nothing", "no tokens", "no output", "no input", "all alike", "all in proportion"],
)
def test_costs_that_cannot_be_told_apart_are_not_invented(shapes: list[tuple[int, int, int]]) -> None:
    with pytest.raises(FitFailed):
        fit([measured(shape, (1e-3, 1e-4, 4e-3)) for shape in shapes])


def test_output_that_costs_nothing_is_not_believed() -> None:
    with pytest.raises(FitFailed, match="apart"):
        fit(
            [
                Measurement("mix", uncached, uncached, 0, output)
                for uncached, output in [(100, 1), (100, 10), (50, 50)]
            ]
        )
