"""Sorted shards are told from shuffled ones, of any size, and refused where they do harm."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.class_mix import check_window, class_mix, shard_mix
from pipeline.order import order
from pipeline.shards import INDEX_DTYPE, Index
from tests.conftest import prepare_here, write_source

Labels = NDArray[np.int64]


def even(num_samples: int, num_classes: int, rng: np.random.Generator) -> Labels:
    return rng.permutation(np.arange(num_samples) % num_classes)


def zipf(num_samples: int, num_classes: int, rng: np.random.Generator) -> Labels:
    share = 1 / np.arange(1, num_classes + 1)
    return rng.choice(num_classes, num_samples, p=share / share.sum())


def rare(num_samples: int, num_classes: int, rng: np.random.Generator) -> Labels:
    """About two samples are not of class 0."""
    labels = rng.integers(0, num_classes, num_samples)
    return np.where(rng.random(num_samples) < 2 / num_samples, labels, 0)


def index(labels: Labels, per_shard: int) -> Index:
    """Rows of shards of about `per_shard` samples, none of more."""
    parts = np.array_split(labels, -(-len(labels) // per_shard))
    rows = np.zeros(len(labels), INDEX_DTYPE)
    rows["label"] = labels
    rows["shard"] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return rows


@pytest.mark.parametrize("draw", [even, zipf, rare])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 10, 100, 1000])
@pytest.mark.parametrize("num_samples", [2, 10, 39, 200, 1000])
def test_shuffled_shards_of_any_size_may_be_read_by_windows(
    draw: Callable[[int, int, np.random.Generator], Labels], num_classes: int, num_samples: int
) -> None:
    for per_shard in (1, 2, 5, 9, 50, 333):
        for seed in range(2):
            rng = np.random.default_rng([seed, num_samples, num_classes, per_shard])
            rows = index(draw(num_samples, num_classes, rng), per_shard)
            for window in (1, 2):
                check_window(rows, window, "train")


@pytest.mark.parametrize("draw", [even, zipf])
@pytest.mark.parametrize(
    ("num_samples", "num_classes", "per_shard"),
    [
        (200, 2, 9), (200, 10, 5), (200, 50, 20), (1000, 2, 2), (1000, 100, 9), (5000, 1000, 50),
        (200_000, 1000, 1000),
    ],
)  # fmt: skip
def test_sorted_shards_are_refused_with_both_entropies_and_two_ways_out(
    draw: Callable[[int, int, np.random.Generator], Labels],
    num_samples: int,
    num_classes: int,
    per_shard: int,
) -> None:
    rng = np.random.default_rng([num_samples, num_classes])
    rows = index(np.sort(draw(num_samples, num_classes, rng)), per_shard)
    mix, num_shards = shard_mix(rows), int(rows["shard"][-1]) + 1
    for window in (1, num_shards - 1):
        with pytest.raises(ValueError, match="^shards, train: its shards are sorted") as caught:
            check_window(rows, window, "shards, train")
        message = str(caught.value)
        assert f"{mix.measured_bits:.2f} bits, {mix.expected_bits:.2f} expected by cha" in message
        assert f"a window of {window} of the {num_shards} shards" in message
        assert "--window all" in message and "--shuffle-seed" in message
    check_window(rows, "all", "train")
    check_window(rows, num_shards, "train")  # one window over all shards


def test_shards_of_some_of_the_classes_are_sorted_too() -> None:
    """As a shuffle buffer of 20 shards leaves them: each holds a fifth of the classes."""
    rng = np.random.default_rng(3)
    runs = np.split(np.sort(even(100_000, 100, rng)), 5)
    rows = index(np.concatenate([rng.permutation(run) for run in runs]), 1000)
    assert shard_mix(rows).is_sorted


def test_shards_more_even_than_chance_are_not_sorted() -> None:
    mix = shard_mix(index(np.tile(np.arange(50), 100), 50))
    assert mix.measured_bits == pytest.approx(np.log2(50)) and not mix.is_sorted
    assert mix.expected_bits < 5.2


def test_the_entropy_is_that_of_the_formula() -> None:
    labels = np.array([0, 0, 1, 2, 7, 7, 7, 7])
    mix = class_mix(labels, np.array([4, 4]))
    assert mix.measured_bits == pytest.approx((1.5 + 0) / 2)
    # From the probability that k of a class's samples are among four of the eight.
    expected = 0.0
    for total in (2, 1, 1, 4):
        for k in range(1, min(total, 4) + 1):
            ways = _choose(total, k) * _choose(8 - total, 4 - k) / _choose(8, 4)
            expected -= ways * k / 4 * np.log2(k / 4)
    assert abs(mix.expected_bits - expected) < 4 * mix.deviation_bits / np.sqrt(16)


def _choose(n: int, k: int) -> int:
    return int(np.prod(range(n - k + 1, n + 1)) // np.prod(range(1, k + 1)))


def test_no_more_samples_are_looked_at_than_asked_for() -> None:
    labels = even(10_000, 10, np.random.default_rng(0))
    mix = class_mix(labels, np.full(100, 100), max_samples=1050)
    assert (mix.num_groups, mix.num_samples) == (10, 1000)
    assert class_mix(labels, np.array([5000, 5000]), max_samples=10).num_groups == 1


def test_prepared_shards_are_mixed_and_the_batches_of_a_window_are_too(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train_per_class=40, val_per_class=1)
    dataset = prepare_here(source, tmp_path / "out", images_per_shard=6).dataset
    rows = dataset.index("train")
    assert not shard_mix(rows).is_sorted
    sizes = np.bincount(rows["shard"])
    batches = np.full(10, 12)
    assert not class_mix(rows["label"][order(sizes.tolist(), 0, 0, 2)], batches).is_sorted
    ordered = np.sort(rows, order="id")  # as the source lists them: class by class
    ordered["shard"] = rows["shard"]
    assert shard_mix(ordered).is_sorted
    assert class_mix(ordered["label"][order(sizes.tolist(), 0, 0, 2)], batches).is_sorted
    assert not class_mix(ordered["label"][order(sizes.tolist(), 0, 0)], batches).is_sorted
