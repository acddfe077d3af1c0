"""Every epoch visits each sample once, on any number of ranks, as a function of seed and epoch."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order import ORDER_TAG, Window, local_order, num_steps, order, rank_part

exactly = settings(derandomize=True, deadline=None, max_examples=60)
shard_sizes = st.lists(st.integers(0, 12), min_size=1, max_size=8)
windows = st.one_of(st.just("all"), st.integers(1, 9))
seeds = st.integers(0, 2**64 - 1)

# Of shards of 4, 5 and 3 rows with seed 7 in epoch 2. NumPy may change its streams one day: saved
# states would then name other batches, and ORDER_VERSION must be raised.
GOLDEN: dict[Window, list[int]] = {
    "all": [7, 11, 4, 5, 6, 9, 2, 10, 1, 3, 0, 8],
    2: [8, 9, 10, 11, 6, 4, 5, 7, 0, 1, 2, 3],
    1: [8, 6, 4, 5, 7, 11, 9, 10, 0, 1, 2, 3],
}


@pytest.mark.parametrize("window", GOLDEN)
def test_the_order_is_the_one_of_version_one(window: Window) -> None:
    assert order([4, 5, 3], 7, 2, window).tolist() == GOLDEN[window]


@exactly
@given(shard_sizes, seeds, st.integers(0, 1000), windows)
def test_an_epoch_is_a_permutation_that_can_be_replayed(
    sizes: list[int], seed: int, epoch: int, window: Any
) -> None:
    rows = order(sizes, seed, epoch, window)
    assert rows.dtype == np.int64
    assert sorted(rows.tolist()) == list(range(sum(sizes)))
    np.testing.assert_array_equal(rows, order(sizes, seed, epoch, window))


def test_the_local_order_is_the_one_of_version_one() -> None:
    expected = [6, 4, 1, 11, 10, 2, 5, 3, 0, 8, 9, 7]  # an even and an odd pair in each batch
    assert local_order(12, 7, 2, 4, 2).tolist() == expected


@exactly
@given(st.integers(0, 60), seeds, st.integers(0, 1000), st.integers(1, 5), st.integers(1, 5))
def test_a_local_order_visits_each_row_once_and_deals_each_rank_its_own(
    num_samples: int, seed: int, epoch: int, per_rank: int, world_size: int
) -> None:
    batch_size = per_rank * world_size
    rows = local_order(num_samples, seed, epoch, batch_size, world_size)
    assert rows.dtype == np.int64 and sorted(rows.tolist()) == list(range(num_samples))
    again = local_order(num_samples, seed, epoch, batch_size, world_size)
    np.testing.assert_array_equal(rows, again)
    for step in range(num_steps(num_samples, batch_size, training=True)):
        for rank in range(world_size):
            first, last = rank_part(num_samples, batch_size, step, rank, world_size)
            assert last - first == per_rank
            assert (rows[first:last] % world_size == rank).all()


def test_local_orders_of_epochs_seeds_and_world_sizes_differ() -> None:
    orders = {
        tuple(local_order(64, seed, epoch, 8, world_size).tolist())
        for seed in (0, 1, 2**64 - 1)
        for epoch in range(3)
        for world_size in (1, 2, 4)
    }
    assert len(orders) == 27
    assert tuple(order([64], 0, 0).tolist()) not in orders


@exactly
@given(shard_sizes, seeds, st.integers(0, 1000), st.integers(1, 9))
def test_a_window_is_its_shards_rows_put_together_and_permuted(
    sizes: list[int], seed: int, epoch: int, window: int
) -> None:
    key = np.array([seed, ORDER_TAG], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, epoch]))
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    shards = generator.permutation(len(sizes)).tolist()
    expected: list[int] = []
    for start in range(0, len(sizes), window):
        run = np.concatenate([rows[shard] for shard in shards[start : start + window]])
        expected += generator.permutation(run).tolist()
    assert order(sizes, seed, epoch, window).tolist() == expected


@pytest.mark.parametrize("window", ["all", 2])
def test_epochs_and_seeds_differ(window: Window) -> None:
    orders = {
        tuple(order([20] * 5, seed, epoch, window).tolist())
        for seed in (0, 1, 2**63, 2**63 + 1, 2**64 - 1)
        for epoch in range(4)
    }
    assert len(orders) == 20


@exactly
@given(shard_sizes, seeds, st.integers(1, 9))
def test_a_window_reads_at_most_so_many_shards_at_a_time(
    sizes: list[int], seed: int, window: int
) -> None:
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    shards = shard_of[order(sizes, seed, 0, window)]  # shards: (position,)
    used = {shard: np.flatnonzero(shards == shard) for shard in set(shards.tolist())}
    spans = sorted((places[0], places[-1]) for places in used.values())
    for place in range(len(shards)):
        assert sum(first <= place <= last for first, last in spans) <= window


def test_positions_are_fair_over_epochs() -> None:
    first = [int(order([5, 5], 3, epoch)[0]) for epoch in range(2000)]
    counts = np.bincount(first, minlength=10)
    assert abs(counts - 200).max() < 5 * np.sqrt(200 * 0.9)  # five standard deviations


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("per_rank", [1, 2, 5])
@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 12, 20, 21, 59, 60, 61])
@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_ranks_share_every_position_once_and_in_order(
    num_samples: int, per_rank: int, world_size: int, training: bool
) -> None:
    batch_size = per_rank * world_size
    steps = num_steps(num_samples, batch_size, training=training)
    parts = [
        rank_part(num_samples, batch_size, step, rank, world_size)
        for step in range(steps)
        for rank in range(world_size)
    ]
    end = steps * batch_size if training else num_samples
    edges = [0, *(last for _, last in parts)]
    assert [first for first, _ in parts] == edges[:-1]  # none missed, none repeated
    assert edges[-1] == end and all(a <= b for a, b in pairwise(edges))
    assert num_samples - end < batch_size
    sizes = [last - first for first, last in parts]
    assert max(sizes, default=0) <= per_rank
    if training:
        assert all(size == per_rank for size in sizes)


def test_the_parts_of_a_last_validation_batch_differ_by_one_at_most() -> None:
    assert [rank_part(10, 8, 1, rank, 4) for rank in range(4)] == [(8, 8), (8, 9), (9, 9), (9, 10)]
