"""What a loader cannot deliver it refuses, with the reason; it never hangs or crashes."""

import dataclasses
import os
import shutil
import threading
from pathlib import Path

import pytest

from pipeline.loader import Loader
from pipeline.manifest import open_dataset, write_dataset
from pipeline.moments import PCA_NAME
from pipeline.order import Window
from pipeline.shards import write_index
from tests.conftest import compute_statistics, prepare_here, write_source
from tests.pipeline.conftest import Open


def num_delivered(loader: Loader) -> int:
    return sum(len(batch.ids) for batch in loader)


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
        assert num_delivered(opened(sorted_shard_folder, lighting="off", window=window)) == 120
    validation = opened(sorted_shard_folder, split="val", training=False, window=1)
    assert num_delivered(validation) == 60


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
    with pytest.raises(ValueError, match="its bytes are not those written"):
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
