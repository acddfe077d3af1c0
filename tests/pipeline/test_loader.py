"""Batches are a function of (seed, epoch, step): cut, resumed, dealt and rendered anyhow."""

import importlib.util
import itertools
import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Sequence
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
from pipeline.loader import Batch, Loader
from pipeline.manifest import open_dataset, write_dataset
from pipeline.moments import PCA_NAME, read_statistics
from pipeline.order import Window, order
from pipeline.reference import render
from pipeline.shards import write_index
from tests.conftest import compute_statistics, prepare_here, write_source
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


def test_a_calibration_may_find_more_steps_ahead_and_batches_stay_the_same(
    shard_folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; here the deepest is taken for the fastest."""
    monkeypatch.setattr("pipeline.renderer.deeper", lambda one: [replace(one, depth=6)])
    monkeypatch.setattr("pipeline.renderer.fastest", lambda choices, *_: choices[-1])
    expected = [kept(batch) for batch in opened(shard_folder, backend="numpy", batch_size=4)]
    loader = opened(shard_folder, backend="numpy", batch_size=4, calibrate=True)
    assert loader.settings.depth == 6
    assert loader.config.rendered_as(loader.settings).prefetch == 6
    assert [kept(batch) for batch in loader] == expected


# ---- cut and resumed ----


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_resumed_at_every_step_the_batches_are_bit_equal(
    shard_folder: Path, backend: str, training: bool, opened: Open
) -> None:
    options: dict[str, Any] = {"split": "train", "training": training, "seed": 3}
    loader = opened(shard_folder, **options)
    states, batches = [], []
    for _ in range(2):  # epochs
        iterator = iter(loader)
        for _ in range(len(loader)):
            states.append(json.loads(json.dumps(loader.state_dict())))
            batches.append(kept(next(iterator)))
        assert next(iterator, None) is None
    other = opened(shard_folder, **options, backend=backend, prefetch=3)
    for place, state in enumerate(states):
        other.load_state_dict(state)
        rest = [kept(batch) for batch in other]  # what is left of that epoch
        end = len(loader) * (1 + place // len(loader))
        assert rest == batches[place:end]
        assert (other.epoch, other.step) == (end // len(loader), 0)


def test_resumed_by_a_fresh_loader_the_batches_are_bit_equal(
    shard_folder: Path, backend: str, opened: Open
) -> None:
    first = opened(shard_folder, backend=backend)
    iterator = iter(first)
    next(iterator), next(iterator)
    state = first.state_dict()
    expected = [kept(batch) for batch in iterator]
    fresh = opened(shard_folder, backend=backend)
    fresh.load_state_dict(state)
    assert [kept(batch) for batch in fresh] == expected


def joined(parts: Sequence[Batch]) -> tuple[bytes, list[int], list[int], list[list[int]]]:
    """What the ranks got at one step, as one batch, comparable."""
    return kept(
        Batch(
            images=torch.cat([part.images for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            ids=torch.cat([part.ids for part in parts]),
            crop=torch.cat([part.crop for part in parts]),
        )
    )


@pytest.mark.parametrize("world_size", [2, 8])
@pytest.mark.parametrize(("training", "window"), [(True, "all"), (True, 2), (False, "all")])
def test_cut_anywhere_the_batches_go_on_bit_equal_on_any_number_of_ranks(
    shard_folder: Path, backend: str, training: bool, window: Window, world_size: int, opened: Open
) -> None:
    options: dict[str, Any] = {"training": training, "window": window, "seed": 3}
    alone = opened(shard_folder, **options)
    states, expected = [], []
    for _ in range(2):  # epochs
        iterator = iter(alone)
        for _ in range(len(alone)):
            states.append(json.loads(json.dumps(alone.state_dict())))
            expected.append(kept(next(iterator)))
        assert next(iterator, None) is None
    options |= {"backend": backend, "threads": 1, "world_size": world_size}
    ranks = [opened(shard_folder, **options, rank=rank) for rank in range(world_size)]
    for cut, state in enumerate(states):
        for rank in ranks:
            rank.load_state_dict(state)
        end = len(alone) * (1 + cut // len(alone))
        assert [joined(parts) for parts in zip(*ranks, strict=True)] == expected[cut:end]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_handed_on_between_other_ranks_threads_and_backends_no_bit_changes(
    shard_folder: Path, training: bool, seed: int, opened: Open
) -> None:
    """Three epochs in legs of a few steps, each leg by other loaders than the one before."""
    rng = np.random.default_rng(seed)
    backends = ["numpy"] + ["dali-cpu"] * (importlib.util.find_spec("nvidia.dali") is not None)
    options: dict[str, Any] = {"training": training, "window": 3, "seed": seed}
    alone = opened(shard_folder, **options)
    expected = [kept(batch) for _ in range(3) for batch in alone]
    state, found, world_sizes = opened(shard_folder, **options).state_dict(), [], set()
    while state["epoch"] < 3:
        options["world_size"] = int(rng.choice([1, 2, 4, 8]))
        world_sizes.add(options["world_size"])
        options["backend"] = str(rng.choice(backends))
        options |= {"threads": int(rng.integers(1, 4)), "prefetch": int(rng.integers(1, 5))}
        ranks = [opened(shard_folder, **options, rank=r) for r in range(options["world_size"])]
        for rank in ranks:
            rank.load_state_dict(state)
        iterators = [iter(rank) for rank in ranks]
        leg = itertools.islice(zip(*iterators, strict=True), int(rng.integers(1, 5)))
        found += [joined(parts) for parts in leg]
        states = [rank.state_dict() for rank in ranks]
        assert states == [states[0]] * len(ranks)
        state = states[0]
    assert found == expected
    assert len(world_sizes) > 1


@pytest.mark.parametrize("num_taken", [1, 3, 4])
def test_left_in_mid_epoch_the_next_loop_goes_on_where_it_was(
    shard_folder: Path, backend: str, num_taken: int, opened: Open
) -> None:
    expected = [kept(batch) for batch in opened(shard_folder)]
    loader = opened(shard_folder, backend=backend)
    found = []
    for batch in loader:
        found.append(kept(batch))
        if len(found) == num_taken:
            break
    assert (loader.epoch, loader.step) == (0, num_taken)
    found += [kept(batch) for batch in loader]
    assert found == expected
    assert (loader.epoch, loader.step) == (1, 0)


def test_the_state_counts_what_was_delivered_not_what_was_read_ahead(
    shard_folder: Path, opened: Open
) -> None:
    loader = opened(shard_folder, prefetch=3)
    iterator = iter(loader)
    next(iterator)
    assert loader.state_dict()["step"] == 1


def test_a_state_taken_after_the_last_batch_goes_on_with_the_next_epoch(
    shard_folder: Path, opened: Open
) -> None:
    loader = opened(shard_folder)
    states = [loader.state_dict() for _ in loader]
    following = kept(next(iter(loader)))
    loader.load_state_dict(states[-1])
    assert list(loader) == []
    assert kept(next(iter(loader))) == following


def test_the_state_holds_what_the_contract_lists_and_nothing_else(
    shard_folder: Path, opened: Open
) -> None:
    state = opened(shard_folder, seed=2**64 - 1, window=2).state_dict()
    assert state.keys() == {
        "seed", "split", "epoch", "step", "global_batch", "window", "drop_last", "augmentation",
        "fingerprint", "order_version", "hw_decoder_load",
    }  # fmt: skip
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"batch_size": 4}, "global_batch is 8 in the saved state and 4 here"),
        ({"seed": 1}, "seed is 0 in the saved state and 1 here"),
        ({"window": 2}, "window is all in the saved state and 2 here"),
        ({"lighting": "off"}, "augmentation"),
        ({"split": "val"}, "split is train in the saved state and val here"),
        ({"training": False}, "drop_last is True in the saved state and False here"),
    ],
)
def test_a_state_of_other_batches_is_refused_by_name(
    shard_folder: Path, changes: dict[str, Any], name: str, opened: Open
) -> None:
    state = opened(shard_folder).state_dict()
    with pytest.raises(ValueError, match=f"cannot resume: {name}"):
        opened(shard_folder, **changes).load_state_dict(state)


def test_a_state_of_other_shards_is_refused(
    shard_folder: Path, raw_shard_folder: Path, opened: Open
) -> None:
    state = opened(shard_folder).state_dict()
    with pytest.raises(ValueError, match="cannot resume: fingerprint"):
        opened(raw_shard_folder).load_state_dict(state)


def test_the_decoder_of_a_state_is_told_and_compared_by_exact_loaders_only(
    shard_folder: Path, opened: Open
) -> None:
    loader = opened(shard_folder)
    state = loader.state_dict()
    assert state["hw_decoder_load"] is None  # the decoder is not a GPU's
    exact = opened(shard_folder, exact=True)
    for load in (None, 0.0):
        exact.load_state_dict({**state, "hw_decoder_load": load, "step": 2})
        assert exact.step == 2
    loader.load_state_dict({**state, "hw_decoder_load": 0.65, "step": 3})
    assert loader.step == 3
    with pytest.raises(ValueError, match=r"cannot resume exactly: hw_decoder_load is 0.65 in"):
        exact.load_state_dict({**state, "hw_decoder_load": 0.65})
    assert exact.step == 2


def test_a_state_without_a_decoder_is_taken(shard_folder: Path, opened: Open) -> None:
    state = opened(shard_folder).state_dict()
    del state["hw_decoder_load"]  # of a release before there was one
    opened(shard_folder, exact=True).load_state_dict(state)


@pytest.mark.parametrize(("exact", "load"), [(False, 0.9), (True, 0.0)])
def test_an_exact_loader_decodes_nothing_with_an_engine(
    shard_folder: Path, opened: Open, exact: bool, load: float
) -> None:
    loader = opened(shard_folder, exact=exact, hw_decoder_load=0.9)
    assert loader.settings.hw_decoder_load == load


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 5},
        {"step": -1},
        {"step": "2"},
        {"epoch": -1},
        {"epoch": None},
        {"order_version": 0},
    ],
)
def test_an_impossible_state_is_refused_and_the_loader_stays_where_it_was(
    shard_folder: Path, changes: dict[str, Any], opened: Open
) -> None:
    loader = opened(shard_folder)
    with pytest.raises(ValueError, match="cannot resume"):
        loader.load_state_dict({**loader.state_dict(), **changes})
    assert (loader.epoch, loader.step) == (0, 0)


def test_set_epoch_moves_to_the_beginning_of_another_epoch_only(
    shard_folder: Path, backend: str, opened: Open
) -> None:
    reference = opened(shard_folder)
    epochs = [[batch.ids.tolist() for batch in reference] for _ in range(4)]
    loader = opened(shard_folder, backend=backend)
    next(iter(loader))
    loader.set_epoch(0)  # already in it: stays after the first batch
    assert [batch.ids.tolist() for batch in loader] == epochs[0][1:]
    next(iter(loader))
    loader.set_epoch(3)
    assert (loader.epoch, loader.step) == (3, 0)
    assert [batch.ids.tolist() for batch in loader] == epochs[3]
    loader.set_epoch(1)
    assert [batch.ids.tolist() for batch in loader] == epochs[1]
    loader.set_epoch(0)  # the epoch just before
    assert [batch.ids.tolist() for batch in loader] == epochs[0]
    with pytest.raises(ValueError, match=r"within 0..2\*\*63-1, not -1"):
        loader.set_epoch(-1)
    with pytest.raises(ValueError, match=r"within 0..2\*\*63-1, not 9223372036854775808"):
        loader.set_epoch(2**63)
    with pytest.raises(TypeError, match="float"):
        loader.set_epoch(1.5)  # type: ignore[arg-type]  # what users may give


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


# ---- what cannot be delivered ----


def test_a_batch_over_the_whole_split_is_refused(shard_folder: Path, opened: Open) -> None:
    with pytest.raises(ValueError, match=r"batch size 40 is over the 39 images of train"):
        opened(shard_folder, batch_size=40)


@pytest.mark.parametrize("window", ["all", 2])
def test_a_split_without_images_is_refused_to_train_on_and_validated_in_no_step(
    shard_copy: Path, opened: Open, window: Window
) -> None:
    dataset = open_dataset(shard_copy)
    index_sha256 = write_index(shard_copy, "train", dataset.index("train")[:0])
    empty = dataclasses.replace(
        dataset.split("train"), shards=(), written=0, index_sha256=index_sha256
    )
    write_dataset(dataclasses.replace(dataset, splits={"train": empty}))
    with pytest.raises(ValueError, match="over the 0 images of train"):
        opened(shard_copy, window=window)
    assert list(opened(shard_copy, training=False)) == []


def test_training_without_pca_is_refused_with_the_command(shard_copy: Path, opened: Open) -> None:
    (shard_copy / PCA_NAME).unlink()
    with pytest.raises(ValueError, match=r"has no pca.json.*run: tools/compute_pca.py"):
        opened(shard_copy)
    for changes in ({"lighting": "off"}, {"training": False}, {"views": "full"}):
        assert len(opened(shard_copy, **changes)) > 0


def test_pca_of_other_shards_is_refused_with_the_command(
    shard_copy: Path, tmp_path: Path, opened: Open
) -> None:
    source = write_source(tmp_path / "source", train_per_class=2, val_per_class=1)
    prepare_here(source, tmp_path / "other")
    compute_statistics(tmp_path / "other")
    shutil.copy(tmp_path / "other" / PCA_NAME, shard_copy)
    with pytest.raises(ValueError, match=r"from other shards .*run: tools/compute_pca.py"):
        opened(shard_copy)


def test_sorted_shards_are_read_by_windows_of_all_shards_only(
    sorted_shard_folder: Path, opened: Open
) -> None:
    few: tuple[Window, ...] = (1, 19)
    for window in few:
        with pytest.raises(ValueError, match=r"sorted, train: its shards are sorted.*0\.09 bits"):
            opened(sorted_shard_folder, lighting="off", window=window)
    whole: tuple[Window, ...] = (20, "all")
    for window in whole:
        assert len(ids_of(opened(sorted_shard_folder, lighting="off", window=window))) == 120
    validation = opened(sorted_shard_folder, split="val", training=False, window=1)
    assert len(ids_of(validation)) == 60


def test_folders_without_shards_or_splits_are_refused(
    shard_folder: Path, tmp_path: Path, opened: Open
) -> None:
    with pytest.raises(ValueError, match="tools/prepare_shards.py"):
        opened(tmp_path)
    with pytest.raises(ValueError, match="no split 'test', it has: train, val"):
        opened(shard_folder, split="test")


def test_a_loader_of_another_process_is_refused_where_it_would_hang(
    shard_folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = opened(shard_folder)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="open one in each"):
        patch.setattr(os, "getpid", lambda: -1)
        iter(loader)


def test_a_loader_that_cannot_be_calibrated_leaves_no_thread(
    shard_copy: Path, opened: Open
) -> None:
    before = threading.active_count()
    for path in shard_copy.glob("train-*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ValueError, match="other bytes than were written"):
        opened(shard_copy, calibrate=True)
    assert threading.active_count() == before


def test_a_shard_that_is_not_of_the_size_written_is_refused_at_once(
    shard_copy: Path, opened: Open
) -> None:
    path = shard_copy / "train-000002.tar"
    for data in (path.read_bytes() + bytes(512), path.read_bytes()[:-512]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{path} has \d+ bytes.*prepare_shards.py"):
            opened(shard_copy)


def test_a_loader_may_be_closed_twice_and_in_mid_epoch(
    shard_folder: Path, backend: str, opened: Open
) -> None:
    before = threading.active_count()
    with opened(shard_folder, backend=backend) as loader:
        next(iter(loader))
    loader.close()
    if backend == "numpy":  # DALI's threads are not Python's
        assert threading.active_count() == before


def test_a_closed_loader_is_refused_where_it_would_hang(
    shard_folder: Path, backend: str, opened: Open
) -> None:
    loader = opened(shard_folder, backend=backend)
    iterator = iter(loader)
    next(iterator)
    loader.close()
    assert next(iterator, None) is None
    with pytest.raises(ValueError, match="this loader was closed"):
        iter(loader)
    assert loader.state_dict()["step"] == 1
