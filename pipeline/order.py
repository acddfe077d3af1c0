"""Which index rows make up step k of epoch e, on every rank: pure functions, nothing else decides.

A pass over the data can be replayed, cut anywhere and dealt to any number of ranks, because it is
computed rather than remembered.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ORDERS = ("global", "local")
ORDER_VERSION = 1  # part of every saved state; raised when a stream of numbers below changes
ORDER_TAG = 0x6F72646572  # "order": keeps this stream of random numbers apart from every other
Window = int | Literal["all"]
Rows = NDArray[np.int64]


def order(shard_sizes: Sequence[int], seed: int, epoch: int, window: Window = "all") -> Rows:
    """The epoch's permutation of index rows, int64 (sum of shard_sizes,).

    shard_sizes: samples of each shard, in index order. window: "all" shuffles all rows; a number W
    shuffles the shards, then the rows within each run of W shards, so that at most W shards are
    read at a time. Source of the stream: NumPy's Philox with key (seed, tag) and counter
    (0, 0, 0, epoch).
    """
    assert window == "all" or window >= 1
    key = np.array([seed, ORDER_TAG], np.uint64)  # NumPy would take a list through float64
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, epoch]))
    sizes = np.asarray(shard_sizes, np.int64)
    if window == "all":
        return generator.permutation(int(sizes.sum()))
    shards = generator.permutation(len(sizes))
    ends = np.cumsum(sizes[shards])  # ends: (shard in shuffled order,), of its positions
    rows = np.arange(int(sizes.sum()))
    first = np.cumsum(sizes) - sizes  # first: (shard,), its first row
    rows += np.repeat(first[shards] - (ends - sizes[shards]), sizes[shards])
    for run in np.split(rows, ends[window - 1 : -1 : window]):
        generator.shuffle(run)  # in place: a run is a view of rows
    return rows


def local_order(
    num_samples: int, seed: int, epoch: int, batch_size: int, world_size: int
) -> Rows:
    """An epoch's permutation in which each rank's part of a batch is of that rank's own share.

    Row i is of the share of rank i % world_size, shuffled by itself; the global batches come
    first, then the rows that an epoch leaves out. batch_size: of all ranks, which world_size
    divides. Another world size is another order. Source of the streams: NumPy's Philox with key
    (seed, tag) and counter (0, 0, 1 + rank, epoch).
    """
    per_rank, rest = divmod(batch_size, world_size)
    assert rest == 0
    key = np.array([seed, ORDER_TAG], np.uint64)
    steps = num_samples // batch_size  # no share is too small: they differ by one row at most
    dealt = np.empty((steps, world_size, per_rank), np.int64)
    left = []
    for rank in range(world_size):
        philox = np.random.Philox(key=key, counter=[0, 0, 1 + rank, epoch])
        share = np.random.Generator(philox).permutation(np.arange(rank, num_samples, world_size))
        dealt[:, rank] = share[: steps * per_rank].reshape(steps, per_rank)
        left.append(share[steps * per_rank :])
    return np.concatenate([dealt.ravel(), *left])


def num_steps(num_samples: int, batch_size: int, *, training: bool) -> int:
    """Steps per epoch: training drops the last partial batch, validation keeps it."""
    return num_samples // batch_size if training else -(-num_samples // batch_size)


def rank_part(
    num_samples: int, batch_size: int, step: int, rank: int, world_size: int
) -> tuple[int, int]:
    """The positions [first, last) of the epoch's order that `rank` takes in `step`.

    batch_size: of all ranks together. Of the n positions of a global batch (fewer than batch_size
    only in validation's last one), rank r of w takes [n r // w, n (r + 1) // w).
    """
    start = step * batch_size
    n = min(batch_size, num_samples - start)
    return start + n * rank // world_size, start + n * (rank + 1) // world_size
