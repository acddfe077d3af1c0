"""A repeated split is a shard folder like any other, with the same images."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.loader import Loader, LoaderConfig
from pipeline.manifest import open_dataset
from pipeline.moments import read_statistics
from tests.conftest import folder_bytes
from tools.measure.repeat import repeat_split


def test_every_row_of_the_repeated_index_leads_to_the_bytes_of_its_image(
    shard_folder: Path, tmp_path: Path
) -> None:
    source = open_dataset(shard_folder)
    repeated = repeat_split(shard_folder, tmp_path, 100)
    rows, originals = repeated.index("train"), source.index("train")
    assert len(rows) == repeated.num_samples("train") == 3 * len(originals) >= 100
    for row, original in zip(rows, np.tile(originals, 3), strict=True):
        path = tmp_path / repeated.split("train").shards[row["shard"]].name
        with open(path, "rb") as file:
            found = os.pread(file.fileno(), int(row["size"]), int(row["offset"]))
        path = shard_folder / source.split("train").shards[original["shard"]].name
        with open(path, "rb") as file:
            wanted = os.pread(file.fileno(), int(original["size"]), int(original["offset"]))
        assert found == wanted
        assert row["label"] == original["label"] and row["id"] == original["id"]


def test_the_folder_opens_like_any_other_and_delivers_each_image_as_often(
    shard_folder: Path, tmp_path: Path
) -> None:
    num_samples = repeat_split(shard_folder, tmp_path, 100).num_samples("train")
    assert open_dataset(tmp_path).num_samples("train") == num_samples
    config = LoaderConfig(shards=tmp_path, batch_size=num_samples, backend="numpy", threads=1)
    with Loader(config) as loader:
        (batch,) = loader
    _, counts = np.unique(batch.ids.numpy(), return_counts=True)
    assert set(counts.tolist()) == {3}


def test_its_statistics_are_those_of_the_source_under_its_own_fingerprint(
    shard_folder: Path, tmp_path: Path
) -> None:
    repeated = repeat_split(shard_folder, tmp_path, 100)
    source = open_dataset(shard_folder)
    assert repeated.fingerprint("train") != source.fingerprint("train")
    found = read_statistics(tmp_path, repeated.fingerprint("train"))
    wanted = read_statistics(shard_folder, source.fingerprint("train"))
    np.testing.assert_array_equal(found.eigenvectors, wanted.eigenvectors)
    np.testing.assert_array_equal(found.eigenvalues, wanted.eigenvalues)
    assert found.num_pixels == 3 * wanted.num_pixels


def test_the_source_is_left_as_it_was(shard_copy: Path, tmp_path: Path) -> None:
    def digests() -> dict[str, str]:
        files = folder_bytes(shard_copy)
        return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}

    before = digests()
    target = tmp_path / "repeated"
    target.mkdir()
    repeat_split(shard_copy, target, 100)
    assert digests() == before


def test_a_folder_without_statistics_is_refused_with_the_command_that_makes_them(
    shard_copy: Path, tmp_path: Path
) -> None:
    (shard_copy / "pca.json").unlink()
    with pytest.raises(ValueError, match="compute_pca.py"):
        repeat_split(shard_copy, tmp_path, 100)
