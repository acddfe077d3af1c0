"""Median, range and percentiles of measurements, and the ratios of two series: pure functions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np

MIN_REPEATS = 5  # with fewer, one disturbed repeat can decide the median


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What repeats of one quantity came to."""

    median: float
    min: float
    max: float


def spread_of(values: Sequence[float]) -> Spread:
    """Median (of an even count: the mean of the middle two), least and largest of `values`."""
    assert values
    return Spread(median=median(values), min=min(values), max=max(values))


def rounded(spread: Spread, digits: int) -> dict[str, float]:
    """As an object of JSON."""
    return {name: round(value, digits) for name, value in asdict(spread).items()}


PERCENTILES = (50, 90, 99)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and max of `values`; between two of them in proportion."""
    assert values
    found = np.percentile(values, PERCENTILES)
    named = {f"p{share}": float(value) for share, value in zip(PERCENTILES, found, strict=True)}
    return {**named, "max": max(values)}


def round_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """ours / theirs round by round: what disturbs a whole round cancels out, unlike in medians.

    Both hold one value per round, in the order of the rounds; all values are positive.
    """
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def require_repeats(repeats: int) -> None:
    """ValueError, with the reason, for a count of repeats too small to mean anything."""
    if repeats < MIN_REPEATS:
        raise ValueError(
            f"repeats must be at least {MIN_REPEATS}, not {repeats}: with fewer, one disturbed "
            "repeat can decide the median"
        )
