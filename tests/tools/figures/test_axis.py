"""Axes are marked at round numbers; numbers are written with the digits that count."""

import math

import pytest

from tools.figures.axis import (
    Axis,
    decades,
    marked,
    round_steps,
    rounded_range,
    value_range,
    written,
)


@pytest.mark.parametrize("low", [0.0, -3.7, 12.0, 0.001])
@pytest.mark.parametrize("span", [1e-6, 0.03, 1.0, 7.0, 90.0, 1.3e7])
@pytest.mark.parametrize("count", [2, 4, 5])
def test_marks_are_even_and_few_and_the_range_grows_to_them(
    low: float, span: float, count: int
) -> None:
    marks = round_steps(low, low + span, count)
    assert len(marks) <= count + 1
    assert all(low - span * 1e-6 <= mark <= low + span * (1 + 1e-6) for mark in marks)
    if len(marks) > 2:
        steps = [b - a for a, b in zip(marks, marks[1:])]
        assert max(steps) - min(steps) <= 1e-6 * span
    first, last = rounded_range(low, low + span, count)
    assert first <= low + span * 1e-6 and last >= low + span * (1 - 1e-6)
    assert last - first < 4 * span


def test_marks_of_whole_numbers_are_whole() -> None:
    assert round_steps(1, 2, 5, whole=True) == [1, 2]
    assert round_steps(1, 90, 5, whole=True) == [20, 40, 60, 80]


def test_known_marks() -> None:
    assert round_steps(0, 3, 4) == [0, 1, 2, 3]
    assert round_steps(0, 0.93, 4) == [0, 0.25, 0.5, 0.75]
    assert rounded_range(0, 0.93, 4) == (0, 1.0)
    assert decades(0.0005, 0.2) == [0.001, 0.01, 0.1]
    assert decades(0.02, 0.05) == [0.02, 0.03, 0.05]
    assert decades(0.00066, 0.0015) == [0.0007, 0.001, 0.0015]


@pytest.mark.parametrize("value", [1e-7, 0.00099, 0.013, 0.4, 2.2, 31.0, 999.0])
def test_around_any_single_rate_there_is_a_mark_that_is_short_to_write(value: float) -> None:
    marks = decades(value / 1.5, value * 1.5)
    assert marks and all(len(marked(mark)) <= 7 for mark in marks)


def test_a_range_shows_all_numbers_and_is_never_empty() -> None:
    assert value_range([2.0, math.nan, 5.0, math.inf], from_zero=True) == (0, 5)
    assert value_range([2.0, 5.0], from_zero=False) == (2, 5)
    for values in ([], [math.nan], [0.0], [3.0], [-3.0]):
        for from_zero in (True, False):
            low, high = value_range(values, from_zero=from_zero)
            assert low < high


def test_places_are_in_proportion_or_in_that_of_the_logarithms() -> None:
    plain = Axis(low=0, high=4, start_px=200, end_px=0)
    assert [plain.place(value) for value in (0, 1, 4, -1)] == [200, 150, 0, 200]
    log = Axis(low=0.01, high=1, start_px=0, end_px=100, log=True)
    assert [round(log.place(value), 9) for value in (0.01, 0.1, 1, 0)] == [0, 50, 100, 0]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "", "–"), (math.nan, "", "not a number"), (math.inf, "%", "not a number"),
        (0.0, "", "0.00"), (2.3, "", "2.30"), (0.4567, "", "0.457"), (99.96, "", "100"),
        (1234.5, "images/s", "1,234 images/s"), (3e-5, "", "3.0e-5"), (2.5e9, "", "2.5e9"),
        (0.835, "%", "83.5%"), (1.0, "%", "100.0%"), (0.0, "%", "0.0%"), (0.0004, "%", "0.04%"),
        (0.00001, "%", "0.001%"), (8e-7, "%", "<0.001%"), (-0.1, "%", "-10.0%"),
    ],
)  # fmt: skip
def test_numbers_are_written_with_the_digits_that_count(
    value: float | None, unit: str, text: str
) -> None:
    assert written(value, unit) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.25, "%", "25%"), (0.0, "%", "0%"), (2.0, "", "2"), (20000.0, "", "20,000"),
     (1e-4, "", "0.0001"), (1e-5, "", "1e-5"), (2e7, "", "2e7"),
     (0.01, "", "0.01"), (0.125, "%", "12.5%")],
)  # fmt: skip
def test_marks_are_written_short(value: float, unit: str, text: str) -> None:
    assert marked(value, unit) == text
