"""A step is order, draws and index put together; ranks' parts are the whole; orders come ahead."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.steps
from pipeline.draws import draws
from pipeline.loader_config import LoaderConfig
from pipeline.order import order
from pipeline.shards import INDEX_DTYPE, Index
from pipeline.steps import Steps


def made_index(shard_sizes: list[int]) -> Index:
    index = np.zeros(sum(shard_sizes), INDEX_DTYPE)
    index["shard"] = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    index["id"] = np.arange(len(index))[::-1] * 3
    index["label"] = np.arange(len(index)) % 7
    return index


def steps_of(shard_sizes: list[int], **config: Any) -> Steps:
    chosen = LoaderConfig(shards=Path("nowhere"), **config)
    return Steps(chosen, made_index(shard_sizes), shard_sizes, None)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shard_sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    per_rank=st.integers(1, 9),
    world_size=st.integers(1, 5),
    window=st.one_of(st.just("all"), st.integers(1, 7)),
    training=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_ranks_together_visit_each_sample_once_wherever_they_begin(
    shard_sizes: list[int],
    per_rank: int,
    world_size: int,
    window: Any,
    training: bool,
    epoch: int,
) -> None:
    num_samples, batch_size = sum(shard_sizes), per_rank * world_size
    options = {"batch_size": batch_size, "window": window, "training": training}
    ranks = [
        steps_of(shard_sizes, **options, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    alone = steps_of(shard_sizes, **options)
    ids: list[int] = []
    for number in reversed(range(len(alone))):  # in any order: a step knows nothing of others
        whole = alone.step(epoch, number)
        parts = [rank.step(epoch, number) for rank in ranks]
        for name in ("rows", "labels", "ids", "crop"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole, name))
        if training:
            assert {len(part.rows) for part in parts} == {per_rank}
        ids += whole.ids.tolist()
    assert len(ids) == len(set(ids))
    wanted = num_samples // batch_size * batch_size if training else num_samples
    assert len(ids) == wanted and set(ids) <= {3 * i for i in range(num_samples)}
    for steps in (*ranks, alone):
        steps.close()


def test_a_step_is_what_order_and_draws_say() -> None:
    steps = steps_of([20, 13, 9], batch_size=8, world_size=2, rank=1, seed=4, window=2)
    rows, drawn = order([20, 13, 9], seed=4, epoch=6, window=2), draws(4, 6, 3, 8)
    step = steps.step(6, 3)
    assert step.rows.tolist() == rows[28:32].tolist()
    assert step.crop.tolist() == drawn.crop[4:].tolist()
    assert step.labels.tolist() == (rows[28:32] % 7).tolist()
    assert step.offsets is None
    steps.close()


def test_an_epoch_s_order_is_computed_once_and_the_next_one_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[tuple[int, bool]] = []
    two_are_done = threading.Event()

    def noted(sizes: list[int], seed: int, epoch: int, window: Any) -> Any:
        rows = order(sizes, seed, epoch, window)
        computed.append((epoch, threading.current_thread() is threading.main_thread()))
        if len(computed) == 2:
            two_are_done.set()
        return rows

    monkeypatch.setattr(pipeline.steps, "order", noted)
    steps = steps_of([20, 20], batch_size=10)
    steps.step(0, 0)
    assert two_are_done.wait(30)  # of epochs 0 and 1, nobody having asked for epoch 1
    for number in range(1, 4):
        steps.step(0, number)
    steps.step(1, 0)
    steps.close()
    assert computed[:2] == [(0, False), (1, False)]
    assert sorted(set(computed)) == sorted(computed)  # none twice


def test_any_epoch_may_follow_any_other() -> None:
    steps = steps_of([20, 13, 9], batch_size=8, seed=4)
    for epoch in (0, 1, 0, 3, 2, 2, 4, 0):  # also back by one, whose successor is known already
        expected = order([20, 13, 9], seed=4, epoch=epoch)[:8]
        assert steps.step(epoch, 0).rows.tolist() == expected.tolist()
    steps.close()
