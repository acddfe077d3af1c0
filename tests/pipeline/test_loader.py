"""Batches are a function of (seed, epoch, step): cut, resumed, dealt and rendered anyhow."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.calibrate import fastest
from pipeline.draws import centre_draws, draws, lighting_offsets
from pipeline.images import decode_stored
from pipeline.loader import Loader
from pipeline.manifest import open_dataset
from pipeline.moments import read_statistics
from pipeline.order import order
from pipeline.reference import render
from tests.pipeline.conftest import BATCH, Open, kept

NUM_TRAIN, NUM_VAL = 39, 15


def ids_of(loader: Loader) -> list[int]:
    return [i for batch in loader for i in batch.ids.tolist()]


def written_ids(folder: Path, split: str) -> list[int]:
    return sorted(open_dataset(folder).index(split)["id"].tolist())


# ---- what a batch is ----


@pytest.mark.parametrize("folder_name", ["shard_folder", "raw_shard_folder"])
@pytest.mark.parametrize(("lighting", "power"), [("std", 0.5), ("variance", 1.0), ("off", None)])
def test_training_batches_are_order_draws_and_the_oracle_put_together(
    folder_name: str,
    lighting: str,
    power: float | None,
    backend: str,
    opened: Open,
    request: pytest.FixtureRequest,
) -> None:
    folder: Path = request.getfixturevalue(folder_name)
    loader = opened(folder, backend=backend, seed=5, lighting=lighting)
    dataset = open_dataset(folder)
    index = dataset.index("train")
    rows = order([s.samples for s in dataset.split("train").shards], seed=5, epoch=0)
    found = read_statistics(folder, dataset.fingerprint("train"))
    for step, batch in enumerate(loader):
        drawn = draws(5, 0, step, BATCH)
        offsets = np.zeros((BATCH, 3), np.float32)
        if power is not None:
            scale = found.eigenvalues**power
            offsets = lighting_offsets(drawn.alpha, found.eigenvectors, scale)
        chosen = index[rows[step * BATCH : (step + 1) * BATCH]]
        expected = [
            render(stored_pixels(folder, "train", row), crop, offset)
            for row, crop, offset in zip(chosen, drawn.crop, offsets, strict=True)
        ]
        images = batch.images.permute(0, 2, 3, 1).numpy()
        assert images.dtype == np.float32
        assert np.ascontiguousarray(images).tobytes() == np.stack(expected).tobytes()
        assert batch.ids.tolist() == chosen["id"].tolist()
        assert batch.labels.tolist() == chosen["label"].tolist()
        assert batch.crop.tolist() == drawn.crop.tolist()


def test_from_its_epoch_on_lighting_is_off_bit_for_bit(
    shard_folder: Path, backend: str, opened: Open
) -> None:
    """The pixels of the first dark epoch are those of a loader that never lit anything."""
    fading = opened(shard_folder, backend=backend, lighting_off_epoch=1)
    bright = opened(shard_folder, backend=backend)
    dark = opened(shard_folder, backend=backend, lighting="off")
    first = [kept(batch) for batch in fading]
    assert first == [kept(batch) for batch in bright]
    dark.set_epoch(1)
    assert [kept(batch) for batch in fading] == [kept(batch) for batch in dark]
    assert first != [kept(batch) for batch in opened(shard_folder, lighting="off")]


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_loader_of_2012_resumes_before_and_after_its_lighting_ends(
    epoch: int, shard_folder: Path, opened: Open
) -> None:
    options: dict[str, Any] = {"images_per_crop": 3, "lighting_off_epoch": 1}
    whole = opened(shard_folder, **options)
    whole.set_epoch(epoch)
    expected, state = [], {}
    for step, batch in enumerate(whole):
        expected.append(kept(batch))
        if step == 1:
            state = whole.state_dict()
    expected += [kept(batch) for batch in whole]  # the epoch after
    other = opened(shard_folder, **options)
    other.load_state_dict(state)
    found = [kept(batch) for batch in other] + [kept(batch) for batch in other]
    assert found == expected[2:]
    with pytest.raises(ValueError, match="cannot resume: augmentation"):
        opened(shard_folder).load_state_dict(state)


def test_ranks_share_the_crops_of_the_global_batch(shard_folder: Path, opened: Open) -> None:
    whole = [batch.crop.tolist() for batch in opened(shard_folder, images_per_crop=5)]
    parts = [
        [batch.crop.tolist() for batch in opened(
            shard_folder, images_per_crop=5, rank=rank, world_size=2
        )]
        for rank in (0, 1)
    ]  # fmt: skip
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def stored_pixels(folder: Path, split: str, row: Any) -> Any:
    tar = (folder / f"{split}-{row['shard']:06d}.tar").read_bytes()
    return decode_stored(tar[row["offset"] :][: row["size"]])


def test_validation_batches_are_centre_crops_in_index_order(
    shard_folder: Path, backend: str, opened: Open
) -> None:
    loader = opened(shard_folder, backend=backend, split="val", training=False)
    index = open_dataset(shard_folder).index("val")
    batches = list(loader)
    assert [len(batch.ids) for batch in batches] == [8, 7]  # the last partial batch is kept
    assert [i for b in batches for i in b.ids.tolist()] == index["id"].tolist()
    zero = np.zeros(3, np.float32)
    expected = [
        render(stored_pixels(shard_folder, "val", row), crop, zero)
        for row, crop in zip(index, centre_draws(NUM_VAL).crop, strict=True)
    ]
    images = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(images.numpy(), np.stack(expected))


@pytest.mark.parametrize("training", [True, False])
def test_full_views_are_the_whole_stored_images(
    shard_folder: Path, backend: str, training: bool, opened: Open
) -> None:
    loader = opened(shard_folder, backend=backend, training=training, views="full", batch_size=4)
    index = open_dataset(shard_folder).index("train")
    row_of = {int(row["id"]): row for row in index}
    batch = next(iter(loader))
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (4, 3, 256, 256)
    for image, sample_id in zip(batch.images, batch.ids.tolist(), strict=True):
        expected = stored_pixels(shard_folder, "train", row_of[sample_id])
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_types_shapes_and_memory_are_those_promised(
    shard_folder: Path, backend: str, opened: Open
) -> None:
    batch = next(iter(opened(shard_folder, backend=backend)))
    assert batch.images.shape == (BATCH, 3, 224, 224) and batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == batch.ids.dtype == torch.int64
    assert batch.crop.dtype == torch.int32 and batch.crop.shape == (BATCH, 3)


def test_a_batch_is_not_overwritten_by_later_ones(
    shard_folder: Path, backend: str, opened: Open
) -> None:
    held, copies = [], []
    for batch in opened(shard_folder, backend=backend):
        held.append(batch)
        copies.append(kept(batch))
    assert [kept(batch) for batch in held] == copies


# ---- which samples an epoch visits ----


@pytest.mark.parametrize("window", ["all", 1, 2])
@pytest.mark.parametrize("batch_size", [1, 8, 13, 39])
def test_training_visits_each_image_once_less_the_dropped_batch(
    shard_folder: Path, batch_size: int, window: str | int, opened: Open
) -> None:
    loader = opened(shard_folder, batch_size=batch_size, window=window)
    for epoch in range(2):
        assert loader.epoch == epoch
        ids = ids_of(loader)
        assert len(ids) == len(set(ids)) == NUM_TRAIN // batch_size * batch_size
        assert len(loader) == NUM_TRAIN // batch_size
        assert set(ids) <= set(written_ids(shard_folder, "train"))


def test_epochs_are_in_different_orders(shard_folder: Path, opened: Open) -> None:
    loader = opened(shard_folder, batch_size=13)
    assert len({tuple(ids_of(loader)) for _ in range(3)}) == 3


@pytest.mark.parametrize("batch_size", [1, 8, 15, 64])
def test_validation_visits_each_image_exactly_once(
    shard_folder: Path, backend: str, batch_size: int, opened: Open
) -> None:
    loader = opened(
        shard_folder, backend=backend, split="val", training=False, batch_size=batch_size
    )
    for _ in range(2):
        assert sorted(ids_of(loader)) == written_ids(shard_folder, "val")
    assert len(loader) == -(-NUM_VAL // batch_size)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_ranks_together_see_what_one_rank_sees(
    shard_folder: Path, backend: str, world_size: int, training: bool, opened: Open
) -> None:
    split = "train" if training else "val"
    options: dict[str, Any] = {"split": split, "training": training, "backend": backend}
    options["batch_size"] = 4  # the last validation batch is of three: less than four ranks
    alone = list(opened(shard_folder, **options))
    ranks = [
        opened(shard_folder, **options, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    sizes = set()
    for whole, *parts in zip(alone, *ranks, strict=True):
        sizes |= {len(part.ids) for part in parts}
        assert all(part.images.shape[1:] == (3, 224, 224) for part in parts)
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
        assert torch.equal(torch.cat([part.crop for part in parts]), whole.crop)
    assert (0 in sizes) == (not training and world_size == 4)


@pytest.mark.parametrize(
    "changes", [{"threads": 1}, {"threads": 5}, {"prefetch": 1}, {"prefetch": 6}]
)
def test_threads_and_prefetch_change_no_bit(
    shard_folder: Path, backend: str, changes: dict[str, int], opened: Open
) -> None:
    expected = [kept(batch) for batch in opened(shard_folder)]
    found = [kept(batch) for batch in opened(shard_folder, backend=backend, **changes)]
    assert found == expected


def test_calibrated_loaders_deliver_the_same_with_threads_of_their_choice(
    shard_folder: Path, backend: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.renderer.fastest", partial(fastest, max_seconds=0.0))
    expected = [kept(batch) for batch in opened(shard_folder)]
    loader = opened(shard_folder, backend=backend, calibrate=True, threads=4)
    assert loader.settings.num_threads in (4, 2)
    assert [kept(batch) for batch in loader] == expected


def test_with_auto_a_calibrated_loader_tells_its_backend_and_validation_takes_it_over(
    shard_folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the last of the choices is taken for the fastest: numpy, whatever else there is."""
    monkeypatch.setattr("pipeline.renderer.fastest", lambda choices, *_: choices[-1])
    expected = [kept(batch) for batch in opened(shard_folder)]
    loader = opened(shard_folder, backend="auto", calibrate=True)
    assert loader.backend == "numpy" and loader.description.startswith("numpy (")
    assert [kept(batch) for batch in loader] == expected
    taken_over = loader.config.rendered_as(loader.settings, loader.backend)
    assert (taken_over.backend, taken_over.calibrate) == ("numpy", False)
    given = opened(shard_folder, backend="auto").config
    assert given.rendered_as(loader.settings, loader.backend).backend == "auto"  # not measured


@pytest.mark.parametrize("staged", [False, True])
def test_a_calibration_may_find_more_steps_ahead_and_batches_stay_the_same(
    shard_folder: Path,
    tmp_path: Path,
    opened: Open,
    staged: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU; here the deepest is taken for the fastest."""
    monkeypatch.setattr("pipeline.renderer.deeper", lambda one: [replace(one, depth=6)])
    monkeypatch.setattr("pipeline.renderer.fastest", lambda choices, *_: choices[-1])
    expected = [kept(batch) for batch in opened(shard_folder, backend="numpy", batch_size=4)]
    staging = {"stage_dir": tmp_path / "stage"} if staged else {}
    loader = opened(shard_folder, backend="numpy", batch_size=4, calibrate=True, **staging)
    assert loader.settings.depth == 6
    assert loader.config.rendered_as(loader.settings, "numpy").prefetch == 6
    assert [kept(batch) for batch in loader] == expected


def test_a_new_iterator_ends_the_one_in_use(
    shard_folder: Path, backend: str, opened: Open
) -> None:
    loader = opened(shard_folder, backend=backend)
    reference = [batch.ids.tolist() for batch in opened(shard_folder)]
    first = iter(loader)
    next(first)
    second = iter(loader)
    assert next(second).ids.tolist() == reference[1]
    assert next(first, None) is None
    assert next(second).ids.tolist() == reference[2]


def test_waiting_for_data_is_counted(shard_folder: Path, backend: str, opened: Open) -> None:
    loader = opened(shard_folder, backend=backend)
    seen = [loader.data_wait_seconds]
    for _ in loader:
        seen.append(loader.data_wait_seconds)
    assert seen[0] == 0 and all(a < b for a, b in zip(seen, seen[1:], strict=False))
    waits = loader.waits
    assert waits.read_wait_seconds > 0 and waits.decode_wait_seconds > 0
    assert waits.handover_wait_seconds > 0 and waits.device_wait_seconds == 0
    assert waits.data_wait_seconds == loader.data_wait_seconds
