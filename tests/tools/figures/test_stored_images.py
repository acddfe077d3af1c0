"""Stored images are read as written; those that cannot be are counted with the reason."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.images import decode_stored
from pipeline.manifest import open_dataset
from tests.conftest import flip_byte
from tools.figures.stored_images import StoredImages, pick_sample


def test_every_row_gives_the_pixels_that_lie_in_its_shard(
    shard_folder: Path, raw_shard_folder: Path
) -> None:
    for folder in (shard_folder, raw_shard_folder):
        images = StoredImages(open_dataset(folder), "train")
        rows = np.array([5, 0, 17])
        (found,) = images.batches(rows)
        assert found.rows.tolist() == [5, 0, 17] and not images.missing
        for place, pixels, label in zip(
            images.index[rows], found.pixels, found.labels, strict=True
        ):
            tar = (folder / f"train-{place['shard']:06d}.tar").read_bytes()
            data = tar[place["offset"] :][: place["size"]]
            np.testing.assert_array_equal(pixels, decode_stored(data))
            assert label == place["label"]
        images.close()


def test_what_is_gone_or_damaged_is_counted_and_the_rest_is_read(shard_copy: Path) -> None:
    dataset = open_dataset(shard_copy)
    (shard_copy / "train-000001.tar").unlink()
    flip_byte(shard_copy / "train-000000.tar", int(dataset.index("train")["offset"][0]) + 900)
    images = StoredImages(open_dataset(shard_copy, check_sizes=False), "train")
    everything = np.arange(len(images))
    read = [row for batch in images.batches(everything) for row in batch.rows.tolist()]
    shards = images.index["shard"]
    assert read == [row for row in everything if shards[row] != 1 and row != 0]
    assert sorted(images.missing.values()) == [1, int((shards == 1).sum())]
    reasons = " ".join(images.missing)
    assert "train-000001.tar cannot be read" in reasons and "does not hold the bytes" in reasons
    assert list(images.read(np.array([0, 1]))) == [1]
    images.close()


@pytest.mark.parametrize(("num_rows", "count"), [(10, 3), (10, 10), (3, 10), (100_000, 1000)])
def test_a_sample_is_distinct_rows_in_order_and_the_same_again(num_rows: int, count: int) -> None:
    rows = pick_sample(num_rows, count, seed=1)
    assert len(rows) == min(num_rows, count)
    assert (np.diff(rows) > 0).all() and 0 <= rows[0] and rows[-1] < num_rows
    np.testing.assert_array_equal(rows, pick_sample(num_rows, count, seed=1))
    if count < num_rows:
        assert rows.tolist() != pick_sample(num_rows, count, seed=2).tolist()
