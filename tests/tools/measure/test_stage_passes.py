"""Stages by themselves keep to their time, however slow they are, and count what they did."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.images import Pixels, decode_stored
from pipeline.prefetcher import READ_AHEAD
from tests.trainer.conftest import make_batch
from tools.measure.rounds import Pass
from tools.measure.stage_passes import (
    FIRST_IMAGES,
    FIRST_LOADED,
    PARTS,
    first_of,
    load_batch_size,
    load_passes,
    mean_speed,
    read_passes,
    step_passes,
)
from trainer.config import RunConfig
from trainer.loop import Trainer
from trainer.parts import Parts, plan_parts
from trainer.world import World

BATCH = 32
DECODE_SECONDS = 0.01


def parts(shards: Path, **changes: Any) -> Parts:
    small: dict[str, Any] = {"batch_size": BATCH, "width": 1 / 32, "backend": "numpy"}
    config = RunConfig(**{"shards": shards, "device": "cpu", **small, **changes})
    return plan_parts(config, World(device=torch.device("cpu")))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A slow decoder; the list grows by one with every image."""
    images: list[int] = []
    lock = threading.Lock()

    def slow(data: bytes) -> Pixels:
        time.sleep(DECODE_SECONDS)
        with lock:
            images.append(1)
        return decode_stored(data)

    monkeypatch.setattr("pipeline.reference.decode_stored", slow)
    return images


def test_a_slow_loader_is_given_batches_that_fit_in_the_time(
    shard_folder: Path, decoded: list[int]
) -> None:
    """A busy machine makes fewer images of it, never more; whole batches would be 320 images."""
    slow, least = parts(shard_folder), FIRST_LOADED * (3 + READ_AHEAD + PARTS)
    size = load_batch_size(slow, seconds=0.01)
    assert size == FIRST_LOADED
    before = len(decoded)
    passes, backend = load_passes(slow, 1, size, seconds=0.01)
    assert backend in ("numpy", "dali-cpu")
    ahead = FIRST_LOADED * (3 + READ_AHEAD)
    assert least <= len(decoded) - before <= least + ahead < BATCH * (3 + READ_AHEAD + PARTS)
    assert [done.num_images for done in passes] == [FIRST_LOADED] * PARTS


def test_where_there_is_time_batches_are_the_run_s_own(shard_folder: Path) -> None:
    assert load_batch_size(parts(shard_folder), seconds=1e6) == BATCH
    assert load_batch_size(parts(shard_folder, batch_size=4), seconds=1e-9) == 4


def test_a_slow_step_is_of_as_few_images_as_fit_in_the_time(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def slow(trainer: Trainer, batch: Any) -> torch.Tensor:
        seen.append(len(batch.labels))
        time.sleep(0.005 * len(batch.labels))
        return torch.zeros(())

    monkeypatch.setattr(Trainer, "train_step", slow)
    passes, size = step_passes(parts(shard_folder), 0.01, BATCH)
    assert size == FIRST_IMAGES and seen == [FIRST_IMAGES] * (2 + 2 + PARTS)
    assert [done.num_images for done in passes] == [FIRST_IMAGES] * PARTS
    monkeypatch.setattr(Trainer, "train_step", lambda trainer, batch: torch.zeros(()))
    assert step_passes(parts(shard_folder), 0.1, 16)[1] == 16  # no more than may be loaded


def test_every_image_is_read_once_where_there_is_time(shard_folder: Path) -> None:
    passes = read_passes(parts(shard_folder), seconds=600.0)
    assert sum(done.num_images for done in passes) == 39


def test_the_mean_speed_is_that_of_all_passes_together() -> None:
    assert mean_speed([Pass(num_images=10, seconds=1.0), Pass(num_images=50, seconds=2.0)]) == 20


def test_a_batch_may_be_cut_short() -> None:
    batch = make_batch(8, 3)
    few = first_of(batch, 3)
    assert torch.equal(few.images, batch.images[:3]) and len(few.crop) == len(few.ids) == 3
    assert len(first_of(batch, 100).labels) == 8
