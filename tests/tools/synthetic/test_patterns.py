"""The ten patterns: figure and ground, edges at their true distance, new proportions each time."""

import numpy as np
import pytest

from tools.synthetic.noise import Plane
from tools.synthetic.patterns import PATTERNS


@pytest.fixture(scope="module")
def grid() -> tuple[Plane, Plane]:
    side = np.linspace(-0.5, 0.5, 301, dtype=np.float32)
    x, y = np.meshgrid(side, side)
    return x, y


def philox(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_has_both_figure_and_ground(name: str, grid: tuple[Plane, Plane]) -> None:
    for seed in range(5):
        depth = PATTERNS[name](philox(seed), *grid)
        assert depth.shape == grid[0].shape and depth.dtype == np.float32
        assert 0.05 < np.mean(depth > 0) < 0.95


@pytest.mark.parametrize("name", PATTERNS)
def test_depth_is_a_distance(name: str, grid: tuple[Plane, Plane]) -> None:
    """Near an edge depth changes by at most, and often by about, the distance walked."""
    depth = PATTERNS[name](philox(0), *grid)
    step = 1 / 300
    slope = np.hypot(*np.gradient(depth, step))[np.abs(depth) < 2 * step]
    assert 0.4 < np.median(slope) < 1.6


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_is_a_function_of_its_generator(name: str, grid: tuple[Plane, Plane]) -> None:
    first, again, other = (PATTERNS[name](philox(seed), *grid) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
