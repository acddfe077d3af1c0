"""Merged and recomputed sums are the same numbers, and damage is named with its mend."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.manifest import open_dataset
from pipeline.shards import write_sums
from pipeline.totals import decode_sums, merge_sums
from tests.conftest import cut_file, flip_byte


@pytest.mark.parametrize("folder_name", ["shard_folder", "raw_shard_folder"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_merged_sums_equal_decoded_sums_bit_for_bit(
    folder_name: str, split: str, request: pytest.FixtureRequest
) -> None:
    dataset = open_dataset(request.getfixturevalue(folder_name))
    reports: list[int] = []
    merged, decoded = merge_sums(dataset, split), decode_sums(dataset, split, reports.append)
    for name, array in merged.arrays().items():
        assert array.tobytes() == decoded.arrays()[name].tobytes(), name
    assert merged.num_images == dataset.num_samples(split) == reports[-1]
    assert reports == sorted(reports)


@pytest.mark.parametrize("position", [3, 150_000, 700_000])
def test_damaged_sums_are_named_with_the_command(shard_copy: Path, position: int) -> None:
    flip_byte(shard_copy / "train-000001.sums.npz", position)
    assert_named(shard_copy)


def test_cut_sums_are_named_with_the_command(shard_copy: Path) -> None:
    cut_file(shard_copy / "train-000001.sums.npz", 30)
    assert_named(shard_copy)


def test_missing_sums_are_named_with_the_command(shard_copy: Path) -> None:
    (shard_copy / "train-000001.sums.npz").unlink()
    assert_named(shard_copy)


def test_emptied_sums_are_named_with_the_command(shard_copy: Path) -> None:
    (shard_copy / "train-000001.sums.npz").write_bytes(b"")
    assert_named(shard_copy)


def assert_named(folder: Path) -> None:
    expected = rf"{folder}/train-000001.sums.npz cannot .*tools/compute_pca.py .* --recompute"
    with pytest.raises(ValueError, match=expected):
        merge_sums(open_dataset(folder), "train")


def test_sums_of_another_number_of_images_are_refused(shard_copy: Path) -> None:
    dataset = open_dataset(shard_copy)
    sums = merge_sums(dataset, "val")
    write_sums(shard_copy, "train", 1, sums, dataset.index("val"), [])
    assert_named(shard_copy)


def test_a_damaged_image_is_named_when_it_is_decoded_again(shard_copy: Path) -> None:
    dataset = open_dataset(shard_copy)
    row = dataset.index("train")[-1]
    path = shard_copy / f"train-{row['shard']:06d}.tar"
    flip_byte(path, int(row["offset"]) + 30)
    expected = rf"{path}, sample {row['id']}: .*verify_shards.py .* --repair SOURCE"
    with pytest.raises(ValueError, match=expected):
        decode_sums(dataset, "train", lambda _: None)


def test_sums_do_not_depend_on_the_number_of_cores(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(shard_folder)
    found = []
    for cores in (1, 5):
        monkeypatch.setattr("pipeline.totals.available_cores", lambda cores=cores: cores)
        found.append(decode_sums(dataset, "train", lambda _: None))
    np.testing.assert_array_equal(found[0].pixel_sum, found[1].pixel_sum)
    np.testing.assert_array_equal(found[0].product_sum, found[1].product_sum)
