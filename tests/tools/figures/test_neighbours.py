"""Neighbours are those that a search through all finds, whatever the batches."""

import numpy as np
import pytest

from tools.figures.neighbours import Nearest


def brute_force(queries: np.ndarray, features: np.ndarray, count: int) -> list[list[int]]:
    """By the definition, an image at a time, in Python's own floats."""
    found = []
    for query in queries:
        distances = []
        for row, feature in enumerate(features):
            square = sum((float(a) - float(b)) ** 2 for a, b in zip(query, feature, strict=True))
            distances.append((square, row))
        found.append([row for _, row in sorted(distances)[:count]])
    return found


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_nearest_are_those_of_a_brute_force_search(batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal((3, 40)).astype(np.float32)
    features = rng.standard_normal((50, 40)).astype(np.float32)
    features[10] = queries[1]
    nearest = Nearest(queries, count=6)
    for first in range(0, 50, batch):
        rows = np.arange(first, min(first + batch, 50))
        nearest.add(rows, features[rows])
    assert nearest.rows.tolist() == brute_force(queries, features, 6)
    assert nearest.rows[1, 0] == 10 and nearest.distances[1, 0] == 0
    assert (np.diff(nearest.distances) >= 0).all()


def test_of_equal_distances_the_lower_row_is_nearer_in_any_order_of_arrival() -> None:
    features = np.array([[1.0], [-1.0], [1.0], [3.0]], np.float32)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        nearest = Nearest(np.zeros((1, 1), np.float32), count=3)
        for row in order:
            nearest.add(np.array([row]), features[[row]])
        assert nearest.rows.tolist() == [[0, 1, 2]]


def test_near_twins_far_from_zero_are_told_apart() -> None:
    """Where |a|^2 - 2ab + |b|^2 in float32 would say 0 for both."""
    query = np.full((1, 4096), 100.0, np.float32)
    features = np.repeat(query, 2, 0)
    features[0, 0] += 0.02
    features[1, 0] += 0.01
    nearest = Nearest(query, count=2)
    nearest.add(np.arange(2), features)
    assert nearest.rows.tolist() == [[1, 0]]


def test_fewer_images_than_asked_for_are_all_there() -> None:
    nearest = Nearest(np.zeros((2, 3), np.float32))
    nearest.add(np.arange(4), np.ones((4, 3), np.float32))
    assert nearest.rows.shape == (2, 4)
