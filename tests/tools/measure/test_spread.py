"""The statistics against series whose answers are known."""

import pytest

from tools.measure.spread import (
    Spread,
    percentiles,
    require_repeats,
    round_ratios,
    spread_of,
)


@pytest.mark.parametrize(
    "values, expected",
    [
        ([3.0, 1.0, 2.0], Spread(median=2.0, min=1.0, max=3.0)),
        ([4.0, 1.0, 3.0, 2.0], Spread(median=2.5, min=1.0, max=4.0)),
        ([5.0], Spread(median=5.0, min=5.0, max=5.0)),
        ([100.0, 1.0, 1.0, 1.0, 1.0], Spread(median=1.0, min=1.0, max=100.0)),
    ],
)
def test_spread_of_known_series(values: list[float], expected: Spread) -> None:
    assert spread_of(values) == expected


def test_ratios_pair_the_rounds_so_that_a_slow_round_cancels_out() -> None:
    """The third round ran at a tenth of the speed, for both; medians of each would hide it too."""
    ours, theirs = [30.0, 33.0, 3.0], [10.0, 11.0, 1.0]
    assert round_ratios(ours, theirs) == [3.0, 3.0, 3.0]


def test_series_of_unequal_length_are_not_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        round_ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize("repeats", [-1, 0, 1, 4])
def test_fewer_than_five_repeats_are_refused_with_the_reason(repeats: int) -> None:
    with pytest.raises(ValueError, match=f"at least 5, not {repeats}.*decide the median"):
        require_repeats(repeats)


def test_five_repeats_are_enough() -> None:
    require_repeats(5)


def test_percentiles_of_a_known_series() -> None:
    """0, 1, … 100 in any order: each percentile is itself."""
    values = [float(value) for value in range(100, -1, -1)]
    assert percentiles(values) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


def test_one_value_is_each_of_its_percentiles() -> None:
    assert percentiles([3.0]) == {"p50": 3.0, "p90": 3.0, "p99": 3.0, "max": 3.0}
